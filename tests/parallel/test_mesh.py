import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from configs import pods
from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.parallel import topology


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_rest_takes_all_devices(count):
    mesh = meshes.make_mesh({"data": -1}, jax.devices()[:count])
    assert dict(mesh.shape) == {"data": count, "fsdp": 1, "tensor": 1, "context": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_two_axes_and_rest():
    mesh = meshes.make_mesh({"fsdp": 2, "data": -1, "tensor": 2, "context": 1})
    assert tuple(mesh.shape.values()) == (2, 2, 2, 1)
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"data": 3}, ["data=3", "8"]),
        ({"data": -1, "fsdp": 3}, ["fsdp=3", "8", "divide"]),
        ({"data": -1, "fsdp": -1}, ["data", "fsdp", "only one"]),
        ({"data": 0}, ["mesh.data", "0"]),
        ({"data": 2.0}, ["mesh.data", "2.0"]),
        ({"model": 8}, ["mesh.model", "tensor"]),
        ({}, ["one device", "8"]),
    ],
)
def test_bad_shapes_are_named(shape, words):
    with pytest.raises(UserError) as caught:
        meshes.make_mesh(shape)
    for word in words:
        assert word in str(caught.value)


def test_batch_is_cut_over_data_and_fsdp_only():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x = jax.device_put(jnp.arange(24.0).reshape(8, 3), meshes.batch_sharding(mesh))
    assert {s.data.shape for s in x.addressable_shards} == {(2, 3)}
    starts = sorted(s.index[0].indices(8)[0] for s in x.addressable_shards)
    assert starts == [0, 0, 2, 2, 4, 4, 6, 6]
    assert meshes.batch_shards(mesh) == 4
    whole = jax.device_put(x, meshes.replicated(mesh))
    assert {s.data.shape for s in whole.addressable_shards} == {(8, 3)}


def fake_processes(monkeypatch, mesh, per_process):
    """Pretends that each run of `per_process` devices belongs to one process."""

    real = meshes.batch_sharding(mesh)

    class Device(SimpleNamespace):
        __hash__ = object.__hash__

    def index_map(shape):
        return {
            Device(process_index=device.id // per_process): index
            for device, index in real.devices_indices_map(shape).items()
        }

    monkeypatch.setattr(
        meshes, "batch_sharding", lambda _: SimpleNamespace(devices_indices_map=index_map)
    )


@pytest.mark.parametrize(
    ("shape", "order", "expected"),
    [
        ({"data": 8}, range(8), [(0,), (1,)]),
        ({"data": 2, "tensor": 4}, range(8), [(0,), (1,)]),
        ({"data": 2, "fsdp": 2, "tensor": 2}, range(8), [(0,), (1,)]),
        ({"tensor": 8}, range(8), [(0,), (0,)]),  # both processes feed the same rows
        # As on a torus, of which a host has a block.
        ({"data": 4, "fsdp": 2}, (0, 1, 4, 5, 2, 3, 6, 7), [(0, 2), (1, 3)]),
        ({"data": 8}, (0, 4, 1, 5, 2, 6, 3, 7), [(0, 2, 4, 6), (1, 3, 5, 7)]),
        ({"data": 4, "tensor": 2}, (0, 1, 4, 5, 2, 3, 6, 7), [(0, 2), (1, 3)]),
    ],
)
def test_batch_part_of_each_process(monkeypatch, shape, order, expected):
    mesh = meshes.make_mesh(shape, [jax.devices()[place] for place in order])
    fake_processes(monkeypatch, mesh, per_process=4)
    parts = [meshes.batch_part(mesh, process) for process in (0, 1)]
    assert [part.pieces for part in parts] == expected
    rows = {row for part in parts for row in part.rows(16).tolist()}
    assert rows == set(range(16))
    for process, part in enumerate(parts):
        # The very rows that its devices hold.
        held = set()
        for device, index in (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(meshes.BATCH_AXES))
            .devices_indices_map((16,))
            .items()
        ):
            if device.id // 4 == process:
                held.update(range(*index[0].indices(16)))
        assert part.rows(16).tolist() == sorted(held)
        assert part.size(16) == len(held) and part.shares == 16 // len(held)


def test_batch_part_refuses_what_no_loader_can_feed(monkeypatch):
    mesh = meshes.make_mesh(
        {"data": 4, "tensor": 2}, [jax.devices()[i] for i in (0, 1, 2, 4, 3, 5, 6, 7)]
    )
    fake_processes(monkeypatch, mesh, per_process=4)
    with pytest.raises(UserError, match="overlap or differ in size"):
        meshes.batch_part(mesh, 0)


@pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")
@pytest.mark.parametrize("pod", [pod for pod in pods.PODS if not pod.startswith("h100")])
@pytest.mark.parametrize("name", pods.CONFIGS)
def test_every_host_of_a_pod_has_rows_to_feed(name, pod):
    shape = pods.get_config(f"{name}@{pod}").mesh
    mesh = topology.tpu_mesh(pods.PODS[pod], shape)
    hosts = {device.process_index for device in mesh.devices.flat}
    parts = [meshes.batch_part(mesh, host) for host in hosts]
    rows = np.concatenate([part.rows(mesh.size) for part in parts])
    assert len(hosts) > 1 and sorted(rows.tolist()) == list(range(mesh.size))


def test_describe_is_one_line():
    assert meshes.describe(meshes.make_mesh({"data": 4, "fsdp": 2})) == (
        "data=4 fsdp=2 on 8 cpu devices of 1 process"
    )
    assert meshes.describe(meshes.make_mesh({}, jax.devices()[:1])) == ("1 cpu device of 1 process")


def test_set_cpu_devices_in_a_fresh_process():
    code = (
        "from jepa.parallel.mesh import set_cpu_devices as s\n"
        "from jepa.errors import UserError\n"
        "s(3)\nimport jax\nprint(len(jax.devices()))\ns(3)\n"
        "try: s(5)\nexcept UserError as e: print(e)\n"
    )
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "3"
    assert "started with 3 CPU devices and cannot show 5" in lines[1]
