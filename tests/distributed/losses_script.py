"""One process of `test_two_processes`: coordinator address, process index, output folder."""

import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))


def main(address, index, folder):
    from jepa.parallel.mesh import (
        batch_sharding,
        batch_slice,
        describe,
        make_mesh,
        replicated,
        set_cpu_devices,
    )

    set_cpu_devices(4)
    jax.distributed.initialize(address, 2, index, initialization_timeout=60)
    from test_two_processes import inputs, step

    mesh = make_mesh({"data": 4, "fsdp": -1})
    assert describe(mesh) == "data=4 fsdp=2 on 8 cpu devices of 2 processes"
    assert batch_slice(mesh) == (index, 2)
    assert batch_slice(make_mesh({"tensor": 8})) == (0, 1)
    rows = batch_sharding(mesh)
    half = [x[index * 8 : (index + 1) * 8] for x in inputs()]
    arrays = [jax.make_array_from_process_local_data(rows, x) for x in half]
    with jax.set_mesh(mesh):
        results = jax.jit(step, out_shardings=replicated(mesh))(*arrays, jax.random.key(5))
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(results)]
    np.savez(Path(folder) / f"process{index}", **{f"leaf{j}": x for j, x in enumerate(leaves)})
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
