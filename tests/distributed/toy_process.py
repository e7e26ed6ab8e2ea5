"""One process of a run of the toy method, as `experiments.train` would train it; see `--help`.

The variables that `jepa.parallel.hosts.join` reads say whether there are others.
"""

import argparse
import os
import time

import jax
import numpy as np

from experiments import cli
from jepa.batch_part import BatchPart
from jepa.errors import UserError
from jepa.parallel import hosts
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.optimizer import flatten
from tests.training import toy


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--devices", type=int, default=1, help="of this process")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--seconds", type=float, default=0.0, help="that a batch takes")
    parser.add_argument("--late", type=int, help="the process that evaluates for too long")
    parser.add_argument("--fails", type=int, help="the process that raises at step 5")
    parser.add_argument("--mistake", type=int, help="the process whose loader tells of one there")
    parser.add_argument("--hidden", type=int, default=16, help="width of the model")
    parser.add_argument("--heartbeat", type=int, default=hosts.HEARTBEAT)
    parser.add_argument("--barrier", type=int, default=hosts.BARRIER)
    parser.add_argument("--distributed", action="store_true")
    return parser.parse_args()


class SlicedLoader(toy.Loader):
    """The rows of each global batch that this process feeds."""

    part, seconds, fails, mistake = BatchPart(), 0.0, False, False

    @property
    def element_spec(self):
        rows = self.part.size(self.batch)
        return {k: jax.ShapeDtypeStruct((rows, toy.IN), self.dtype) for k in ("x", "y")}

    def __next__(self):
        time.sleep(self.seconds)
        if self.fails and self.next == 5:
            raise RuntimeError("this process fails")
        if self.mistake and self.next == 5:
            raise UserError("too many videos cannot be read.")
        rows = self.part.rows(self.batch)
        return {k: v[rows] for k, v in super().__next__().items()}


def evaluator(late):
    def evaluate(state):
        if late:
            time.sleep(3600)
        return {"steps": float(state.step)}

    return evaluate


def main():
    given = arguments()
    if given.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    meshes.set_cpu_devices(given.devices)
    if given.distributed:
        hosts.join(heartbeat=given.heartbeat, timeout=given.barrier, preemption=True)
    with hosts.together():
        train(given)


def train(given):
    made = toy.config(
        dtype=given.dtype,
        mesh__fsdp=given.fsdp,
        train__steps=given.steps,
        train__save_every=4,
        train__log_every=1,
        train__eval_every=6,
        train__health_every=0,
        model__hidden=given.hidden,
    )
    config = configs.resolve(made)
    mesh = meshes.make_mesh(config.mesh)
    SlicedLoader.part = meshes.batch_part(mesh)
    SlicedLoader.seconds = given.seconds
    SlicedLoader.fails = given.fails == hosts.index()
    SlicedLoader.mistake = given.mistake == hosts.index()
    late = given.late == hosts.index() and given.distributed
    loader = SlicedLoader(config.train.global_batch, config.seed, np.dtype(given.dtype))
    result = loop.train(
        config,
        given.workdir,
        method=toy.Toy(config),
        loader=loader,
        mesh=mesh,
        evaluators={"toy": evaluator(late)},
    )
    if result.finished:
        for name, array in flatten(result.state.params).items():
            for shard in array.addressable_shards:
                # Rows that lie on several devices are told of by each.
                print("final", name, shard.index, np.asarray(shard.data).sum().hex(), os.getpid())


if __name__ == "__main__":
    cli.run(main)
