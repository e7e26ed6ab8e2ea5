"""A linear joint-embedding method and a loader for it: the smallest thing the trainer can train."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jepa.errors import UserError, check_known
from jepa.methods.base import Outputs, Requirements
from jepa.parallel import partition
from jepa.training import config as train_config

IN, HIDDEN, OUT = 6, 8, 4


class Toy:
    """Predicts a linear view of a vector from another by a two-layer network, squared error."""

    def __init__(self, config):
        self.config = config
        self.requirements = Requirements(
            ema=bool(config.model.ema),
            frozen=tuple(config.model.frozen),
            learning_rate_groups=tuple(map(tuple, config.model.groups)),
        )
        self.partition_table = (
            ("encoder/kernel", ("embed", "mlp")),
            ("encoder/bias", ("mlp",)),
            ("head/kernel", ("mlp", None)),
            ("target/kernel", (None, None)),
        )

    def check(self, config):
        known = {"hidden", "ema", "frozen", "groups", "noise"}
        check_known("model", config.model, known)
        check_known("loss", config.loss, {"scale"})
        if config.model.hidden % config.mesh.tensor:
            raise UserError("hidden does not divide")

    def init(self, rng, batch):
        keys = jax.random.split(rng, 3)
        hidden = self.config.model.hidden
        params = {
            "encoder": {
                "kernel": jax.random.normal(keys[0], (batch["x"].shape[1], hidden)) / 2,
                "bias": jnp.zeros((hidden,)),
            },
            "head": {"kernel": jax.random.normal(keys[1], (hidden, OUT)) / 2},
            "target": {"kernel": jax.random.normal(keys[2], (IN, OUT))},
        }
        return params, {"seen": jnp.zeros((), jnp.int32)}

    def pretrained(self):
        return {"target": {"kernel": np.linspace(-1, 1, IN * OUT).reshape(IN, OUT)}}

    def represent(self, params, target_params, state, batch, rng):
        x = batch["x"]
        x = partition.constrain(x, "batch", None)
        hidden = jnp.tanh(x @ params["encoder"]["kernel"] + params["encoder"]["bias"])
        hidden = partition.constrain(hidden, "batch", "mlp")
        noise = self.config.model.noise * jax.random.normal(rng, (x.shape[0], OUT), x.dtype)
        prediction = hidden @ params["head"]["kernel"] + noise
        target = batch["y"] @ (target_params or params)["target"]["kernel"]
        return (
            Outputs(pooled={"prediction": prediction, "target": target}),
            {"seen": state["seen"] + x.shape[0]},
        )

    def objective(self, outputs, step):
        difference = outputs.pooled["prediction"] - outputs.pooled["target"]
        loss = self.config.loss.scale * jnp.mean(difference**2)
        return loss, {"mean_error": jnp.mean(jnp.abs(difference))}

    def embed(self, params, state, batch):
        raise NotImplementedError

    def flops(self, batch):
        return 6.0 * batch["x"].shape[0] * (IN * self.config.model.hidden)


class Loader:
    """Batches as a pure function of (seed, step); see the contract of `jepa.data.loader`."""

    def __init__(self, global_batch, seed, dtype=np.float32, bad_steps=()):
        self.batch, self.seed, self.dtype, self.bad = global_batch, seed, dtype, set(bad_steps)
        self.next = 0
        self.closed = False

    @property
    def element_spec(self):
        return {name: jax.ShapeDtypeStruct((self.batch, IN), self.dtype) for name in ("x", "y")}

    def __iter__(self):
        return self

    def __next__(self):
        step, self.next = self.next, self.next + 1
        rng = np.random.default_rng((self.seed, step))
        x = rng.normal(size=(self.batch, IN)).astype(self.dtype)
        if step in self.bad:
            x[0, 0] = np.nan
        return {"x": x, "y": np.cumsum(x, axis=1)}

    def state(self):
        return {"next": self.next}

    def restore(self, state):
        self.next = state["next"]

    def close(self):
        self.closed = True


class Parts:
    """The parts of the phases of a toy run; see `jepa.training.parts.Parts`."""

    def __init__(self, loader=Loader, evaluators=None):
        self._loader, self._evaluators = loader, evaluators or {}

    def method(self, phase):
        return Toy(phase.config)

    def batch_spec(self, phase, method):
        return Loader(phase.config.train.global_batch, 0).element_spec

    def loader(self, phase, method, params, stopped):
        return self._loader(phase.config.train.global_batch, phase.data_seed)

    def evaluators(self, phase, method):
        return self._evaluators


def config(**overrides):
    """Returns a small, complete config; overrides are `section__key=value`."""
    made = ConfigDict(
        {
            "seed": 3,
            "method": "tests.training.toy.Toy",
            "dtype": "float32",
            "mesh": train_config.default_mesh_config(),
            "data": {"noise": 0.0},
            "model": {"hidden": HIDDEN, "ema": False, "frozen": (), "groups": (), "noise": 0.1},
            "loss": {"scale": 1.0},
            "optimizer": train_config.default_optimizer_config(),
            "ema": None,
            "train": train_config.default_train_config(),
            "evaluation": {},
        }
    )
    made.optimizer.learning_rate = 0.02
    made.optimizer.warmup_steps = 2
    made.train.update(steps=20, global_batch=16, log_every=5, eval_every=0, save_every=8)
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            with made[section].ignore_type():
                made[section][name] = value
        else:
            with made.ignore_type():
                made[section] = value
    return made
