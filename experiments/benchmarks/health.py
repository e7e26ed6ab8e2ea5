"""What the measurements of `jepa.training.health` cost: their program beside the train step's.

An I-JEPA of a size in `jepa.models.vit.VITS` on images of zeros, so that no data are needed.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.benchmarks.measurement import Measurement, alternate, median_ratio, progress
from jepa import methods
from jepa.errors import UserError
from jepa.masks.config import from_config
from jepa.methods import i_jepa
from jepa.models.vit import VITS
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import health, step
from jepa.training.prepare import make_step
from jepa.training.state import Initializer

_EVERY = int(configs.default_train_config().health_every)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this suite's flags."""
    group = parser.add_argument_group("health")
    group.add_argument("--vit", default="tiny", help="size of the encoder")
    group.add_argument("--health_batch", type=int, default=64, help="images")


def check(args: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
        UserError: An unknown size, or fewer than two images.
    """
    if args.vit not in VITS:
        raise UserError(f"--vit={args.vit}: choose one of {', '.join(VITS)}")
    if args.health_batch < 2:
        raise UserError(f"--health_batch is {args.health_batch}; it must be at least 2")


def _config(vit: str, batch: int) -> ConfigDict:
    config = ConfigDict({"seed": 0, "dtype": "float32", "method": "jepa.methods.i_jepa.IJEPA"})
    config.mesh = configs.default_mesh_config()
    grid = {"frames": 1, "size": 64, "patch": 8, "tubelet": 1}
    config.data = {"streams": ("video", "masks"), "masks": {"sampler": "multiblock"}, **grid}
    config.model = i_jepa.default_model()
    config.model.encoder.update(VITS[vit], patch=8)
    config.loss = i_jepa.default_loss()
    config.ema = configs.default_ema_config()
    config.train = {"global_batch": batch}
    return configs.resolve(config)


def _batch(config: ConfigDict) -> dict[str, Any]:
    count, data = config.train.global_batch, config.data
    side = data.size // data.patch
    masks = from_config(data.masks, (data.frames // data.tubelet, side, side))
    return {
        "video": jnp.zeros((count, data.frames, data.size, data.size, 3), jnp.uint8),
        "masks": jax.tree.map(jnp.asarray, masks.sample(0, np.arange(count))),
    }


def suite(args: argparse.Namespace) -> list[Measurement]:
    """Seconds of a step and of a measurement, in turns, and the share at the default interval."""
    config = _config(args.vit, args.health_batch)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    method = methods.from_config(config)
    batch = jax.device_put(_batch(config), meshes.batch_sharding(mesh))
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    train = make_step(config, method)
    initializer = Initializer(method, train.optimizer, mesh, spec, seed=0)
    progress("compiling the step and the measurement")
    compiled = step.compile_step(train, mesh, initializer.shapes, spec)
    measuring = health.lower(method, mesh, initializer.shapes, spec, seed=0, accumulate=1).compile()
    held = [initializer.create()]

    def one_step() -> None:
        held[0], values = compiled(held[0], batch)
        jax.block_until_ready(values)

    def one_measurement() -> None:
        jax.block_until_ready(measuring(health.watched(held[0]), batch))

    one_step()
    one_measurement()
    seconds = alternate({"step": one_step, "health": one_measurement}, args.rounds, pause=0.2)
    ratio = median_ratio(seconds["health"], seconds["step"])
    device = mesh.devices.flat[0].device_kind
    note = f"I-JEPA, ViT-{args.vit}, {args.health_batch} images of 64 pixels"
    return [
        Measurement("train step", statistics.median(seconds["step"]), "s", note, device),
        Measurement("measurement of health", statistics.median(seconds["health"]), "s", "", device),
        Measurement("a measurement, in steps", ratio, "", "", device),
        Measurement(
            f"of the run's time, every {_EVERY} steps", 100 * ratio / _EVERY, "%", "", device
        ).held_to(at_most=1),
    ]
