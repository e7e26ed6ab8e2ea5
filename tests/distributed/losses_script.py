"""One process of `test_two_processes`: coordinator address, process index, output folder."""

import sys
from pathlib import Path

import jax
import numpy as np

from jepa.batch_part import BatchPart
from jepa.data.prefetch import put
from jepa.parallel.mesh import batch_part, batch_sharding, describe, make_mesh, set_cpu_devices

sys.path.insert(0, str(Path(__file__).parents[1] / "losses"))


def main(address, index, folder):
    from loss_cases import all_cases, as_float32, on_mesh

    set_cpu_devices(4)
    jax.distributed.initialize(address, 2, index, initialization_timeout=60)
    mesh = make_mesh({"data": 4, "fsdp": -1})
    assert describe(mesh) == "data=4 fsdp=2 on 8 cpu devices of 2 processes"
    assert batch_part(mesh) == BatchPart((index,), 2)
    assert batch_part(make_mesh({"tensor": 8})) == BatchPart()
    rows_lie_apart(index)
    results = {}
    for case in all_cases():
        value, gradients = on_mesh(case, mesh, as_float32(case.inputs()))
        results[f"{case}/value"] = np.asarray(value)
        for name, gradient in gradients.items():
            for shard in gradient.addressable_shards:
                # Each process knows the rows it holds; the test puts them together.
                results[f"{case}/{name}/{_range(shard.index)}"] = np.asarray(shard.data)
    np.savez(Path(folder) / f"process{index}", **results)
    jax.distributed.shutdown()


def rows_lie_apart(index):
    """On a mesh as of a torus, of which a host has a block, rows come to their places."""
    devices = np.array(jax.devices())[[0, 1, 4, 5, 2, 3, 6, 7]]
    mesh = make_mesh({"data": 4, "fsdp": 2}, devices.tolist())
    part, whole = batch_part(mesh), np.arange(48).reshape(16, 3)
    assert part == BatchPart((index, index + 2), 4)
    placed = put(whole[part.rows(16)], batch_sharding(mesh))
    assert placed.shape == whole.shape
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])


def _range(index):
    return ",".join(f"{s.start or 0}:{'' if s.stop is None else s.stop}" for s in index)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
