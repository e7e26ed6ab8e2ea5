"""The compiler flags that BUILD.md names are ones that the pinned compilers know."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jepa.parallel import topology

ROOT = Path(__file__).parents[2]


def named():
    """Name -> value of each flag of the table; `..._x` stands for the name before, ending in x."""
    section = (ROOT / "BUILD.md").read_text().split("## Compiler flags")[1].split("\n## ")[0]
    flags = dict(re.findall(r"`--(xla_\w+)=(\w+)`", section))
    prefix = "xla_tpu_enable_async_collective_fusion"
    for suffix in re.findall(r"`\.\.\.(_fuse\w+|_multiple\w+)=true`", section):
        flags[prefix + suffix] = "true"
    for kind in re.findall(r"`\.\.\.(_reduce_scatter|_all_reduce)_\.\.\.`", section):
        flags[f"xla_gpu{kind}_combine_threshold_bytes"] = "N"
    return {
        name: "/tmp" if value == "DIR" else value.replace("N", "65536")
        for name, value in flags.items()
    }


def test_gpu_flags_are_known_to_jaxlib():
    flags = {name: value for name, value in named().items() if "_gpu_" in name}
    assert len(flags) == 5
    code = "import jax; jax.numpy.zeros(1)"
    for extra, known in (("", True), (" --xla_gpu_no_such_flag=true", False)):
        text = " ".join(f"--{name}={value}" for name, value in flags.items()) + extra
        environment = {**os.environ, "XLA_FLAGS": text, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert (done.returncode == 0) == known, done.stderr


@pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")
def test_tpu_flags_are_known_to_libtpu():
    mesh = topology.tpu_mesh("v5e:2x2", {"data": 1, "fsdp": 4, "tensor": 1, "context": 1})
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    matrix = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=sharding)
    program = jax.jit(lambda a, b: a @ b).trace(matrix, matrix)
    lowered = program.lower(lowering_platforms=("tpu",))
    flags = {name: value for name, value in named().items() if "_gpu_" not in name}
    flags.pop("xla_dump_to")
    assert len(flags) == 6
    types = {"true": True, "65536": 65536}
    tristate = ("xla_enable_async_all_gather", "fuse_all_gather")
    values = {n: v if n.endswith(tristate) else types[v] for n, v in flags.items()}
    lowered.compile(compiler_options=values)
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options={"xla_tpu_no_such_flag": True})
