"""One process of `test_weights`: loads a file of weights into sharded parameters and looks."""

import argparse

import jax
import numpy as np

from experiments import restoring
from jepa import methods
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training.optimizer import flatten
from tests.distributed import tiny_configs


def main(weights, world):
    meshes.set_cpu_devices(4)
    hosts.join(timeout=60)
    config = tiny_configs.get_config("vl_jepa")
    config.data.path = world
    config.mesh.update(data=1, fsdp=-1)
    config.model.x_encoder.weights = weights
    config = configs.resolve(config)
    mesh = meshes.make_mesh(config.mesh)
    method = methods.from_config(config)
    params = restoring.initializer(config, method, mesh).create().params
    wanted = method.pretrained()["x_encoder"]
    flat = flatten(params["x_encoder"])
    assert flatten(wanted).keys() == flat.keys()
    cut = 0
    for path, pending in flatten(wanted).items():
        array, whole = flat[path], np.asarray(pending.read())
        assert array.shape == whole.shape and len(array.addressable_shards) == 4
        cut += array.addressable_shards[0].data.size * 8 == whole.size
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index], err_msg=path)
    print(f"process {jax.process_index()}: {len(flat)} parameters, {cut} of them cut by 8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights")
    parser.add_argument("--world")
    parser.add_argument("--distributed", action="store_true")
    given = parser.parse_args()
    with hosts.together():
        main(given.weights, given.world)
