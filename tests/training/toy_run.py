"""Trains the toy in two phases in a process of its own: arguments WORKDIR STEPS [SLEEP].

The second phase begins after 14 steps. It trains what the first one froze, on a larger batch.
"""

import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.optimizer import flatten
from tests.training import toy

FIRST = 14


class SlowLoader(toy.Loader):
    """Takes its time, so that a signal finds the run in the middle."""

    seconds = 0.0

    def __next__(self):
        time.sleep(self.seconds)
        return super().__next__()


def main(workdir, steps, seconds):
    ema = configs.default_ema_config()
    config = configs.resolve(
        toy.config(
            model__ema=True,
            ema=ema,
            mesh__data=2,
            train__steps=int(steps),
            train__save_every=7,
            train__log_every=1,
            phases=(
                {"name": "first", "steps": FIRST, "model.frozen": ("encoder/kernel",)},
                {
                    "name": "second",
                    "steps": int(steps) - FIRST,
                    "train.global_batch": 32,
                    "optimizer": {"learning_rate": 0.01, "clip_norm": None},
                },
            ),
        )
    )
    SlowLoader.seconds = float(seconds)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:2])
    result = loop.train_phases(config, workdir, parts=toy.Parts(SlowLoader), mesh=mesh)
    if result.finished:
        flat = {f"params/{k}": v for k, v in flatten(result.state.params).items()}
        flat |= {f"target/{k}": v for k, v in flatten(result.state.target_params).items()}
        leaves = {f"opt/{i}": x for i, x in enumerate(jax.tree.leaves(result.state.opt_state))}
        np.savez(f"{workdir}/final.npz", **flat, **leaves)


if __name__ == "__main__":
    meshes.set_cpu_devices(2)
    try:
        main(*sys.argv[1:], *["0"] * (4 - len(sys.argv)))
    except UserError as error:
        sys.exit(f"error: {error}")
