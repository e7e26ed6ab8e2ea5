"""A linear joint-embedding method on clips: everything a run carries, and seconds to start.

The first frame of a clip, made coarse, predicts the moving average's view of its last frame.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.errors import check_known
from jepa.methods.base import Outputs, Requirements
from jepa.nn.frames import to_float

_CELL = 8  # pixels of a side that are averaged


class Linear:
    """Two matrices, a target encoder, noise that depends on the step, a state that counts."""

    def __init__(self, config):
        self.config = config
        self.requirements = Requirements(ema=True)
        self.partition_table = (
            ("encoder/kernel", ("embed", "mlp")),
            ("predictor/kernel", ("mlp", None)),
        )

    def check(self, config):
        check_known("model", config.model, {"width"})

    def init(self, rng, batch):
        keys, width = jax.random.split(rng, 2), self.config.model.width
        inputs = _coarse(batch, 0).shape[1]
        params = {
            "encoder": {"kernel": jax.random.normal(keys[0], (inputs, width)) / inputs**0.5},
            "predictor": {"kernel": jax.random.normal(keys[1], (width, width)) / width**0.5},
        }
        return params, {"seen": jnp.zeros((), jnp.int32)}

    def pretrained(self):
        return {}

    def represent(self, params, target_params, state, batch, rng):
        first, last = _coarse(batch, 0), _coarse(batch, -1)
        hidden = jnp.tanh(first @ params["encoder"]["kernel"])
        hidden = hidden + 0.01 * jax.random.normal(rng, hidden.shape)
        target = jnp.tanh(last @ target_params["encoder"]["kernel"])
        outputs = Outputs(
            pooled={"prediction": hidden @ params["predictor"]["kernel"], "target": target}
        )
        return outputs, {"seen": state["seen"] + len(first)}

    def objective(self, outputs, step):
        difference = outputs.pooled["prediction"] - outputs.pooled["target"]
        return jnp.mean(difference**2), {}

    def embed(self, params, state, batch):
        raise NotImplementedError

    def flops(self, batch):
        return float(jax.tree.leaves(batch["video"])[0].shape[0])


def _coarse(batch, frame):
    """[B, cells]: one frame as the means of its cells."""
    picture = to_float(batch["video"], jnp.float32)[:, frame]
    b, h, w, c = picture.shape
    cells = picture.reshape(b, h // _CELL, _CELL, w // _CELL, _CELL, c)
    return cells.mean((2, 4)).reshape(b, -1)
