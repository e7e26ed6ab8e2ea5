"""Meshes of TPUs that are not there: for compiling a program for a pod on any machine.

libtpu compiles for a topology that is only named. It is found at the path in the environment
variable `TPU_LIBRARY_PATH`, where `pip install "jax[tpu]"` puts it, or where `make test` puts it:
beside the packages of the environment, in `libtpu/`. Among the packages, every import of JAX would
look for chips and complain of finding none.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jepa.errors import UserError
from jepa.parallel.mesh import make_mesh


def has_libtpu() -> bool:
    """Whether this machine can compile for TPUs."""
    return (
        "TPU_LIBRARY_PATH" in os.environ
        or importlib.util.find_spec("libtpu") is not None
        or _beside_packages().is_file()
    )


def _beside_packages() -> Path:
    return Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"


def tpu_mesh(topology: str, shape: Mapping[str, int]) -> Mesh:
    """Builds a mesh over the chips of a named topology, to compile for and never to run on.

    Args:
      topology: such as "v5e:4x4" or "v5p:4x4x8"; the product is the number of chips.
      shape: as for `jepa.parallel.mesh.make_mesh`.

    Raises:
      UserError: libtpu is not installed, or it knows no such topology.
    """
    if not has_libtpu():
        raise UserError('compiling for TPUs needs libtpu; install it with: pip install "jax[tpu]"')
    if importlib.util.find_spec("libtpu") is None and _beside_packages().is_file():
        os.environ.setdefault("TPU_LIBRARY_PATH", str(_beside_packages()))
    # Otherwise libtpu asks a metadata server which host it is on, and lets one process a machine
    # load it; nothing is run here, so several may compile.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"libtpu gives no topology {topology!r} ({error}); write one such as v5e:4x4."
        ) from error
    return make_mesh(shape, description.devices)


def compile_for_tpu(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Compiles a jitted function for arguments that are shapes with shardings on a TPU mesh."""
    traced = jax.jit(function).trace(*arguments, **keywords)
    return traced.lower(lowering_platforms=("tpu",)).compile()
