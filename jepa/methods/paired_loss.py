"""What a predicted and a target embedding are told by: a mixture of losses, weighed by a config.

The contrastive losses (InfoNCE, sigmoid) say which target belongs to which prediction; latent
regression, VICReg and Barlow Twins need no negatives; SIGReg on either side keeps the embeddings
spread out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jepa.errors import UserError
from jepa.losses.barlow_twins import barlow_twins
from jepa.losses.cosines import EQUAL_TARGETS, TRANSPORTS
from jepa.losses.infonce import info_nce, inverse_temperature
from jepa.losses.precision import widen
from jepa.losses.regression import KINDS, regression
from jepa.losses.sigmoid import sigmoid
from jepa.losses.sigreg import sigreg as sigreg_loss
from jepa.losses.sigreg import slice_key
from jepa.losses.vicreg import vicreg
from jepa.methods.base import Metrics
from jepa.methods.sigreg_options import check_sigreg

TERMS = (
    "info_nce",
    "sigmoid",
    "regression",
    "vicreg",
    "barlow_twins",
    "sigreg_prediction",
    "sigreg_target",
)


def default_loss() -> ConfigDict:
    """The `loss` section with its defaults: the paper's InfoNCE alone."""
    return ConfigDict(
        {
            # Weights of the terms; 0 leaves one out.
            "info_nce": 1.0,
            "sigmoid": 0.0,
            "regression": 0.0,
            "vicreg": 0.0,
            "barlow_twins": 0.0,
            "sigreg_prediction": 0.0,
            "sigreg_target": 0.0,
            # Of the contrastive terms. Answers such as "yes" stand in a batch more than once: equal
            # ones are "masked", further "positives", or "negatives" like any other.
            "equal_targets": "masked",
            "transport": "ring",  # or "all_gather", for few devices: memory for whole batches
            "tile": 1024,  # rows, and columns, whose logits exist at a time
            "temperature": 0.07,
            "learnable_temperature": True,  # from `temperature`; else that is used as it is
            "maximum_inverse_temperature": 100.0,
            "hardness": 0.0,
            "label_smoothing": 0.0,
            "sigmoid_bias": -10.0,
            # Of the terms without negatives.
            "regression_kind": "l2",
            "stop_target_gradient": False,  # of the regression
            "vicreg_weights": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
            "barlow_twins_redundancy": 5e-3,
            "sigreg": {
                "slices": 256,
                "knots": 17,
                "t_max": placeholder(float),  # unset: 3 for "folded", 5 for "integral"
                "form": "folded",
                "statistic": "epps_pulley",
                "scale_by_n": True,
                "chunk": placeholder(int),  # slices at a time; unset: all
                "implementation": "xla",
            },
        }
    )


class PairedLoss:
    """The mixture as a function of `[B, S]` predictions and targets."""

    def __init__(self, config: ConfigDict, seed: int):
        """Takes the `loss` section; `seed` is that of SIGReg's slices."""
        self.config = config
        self.seed = seed

    @property
    def contrastive(self) -> bool:
        """Whether a temperature is in use."""
        return bool(self.config.info_nce or self.config.sigmoid)

    def learnt(self, dtype: DTypeLike) -> dict[str, jax.Array]:
        """Initial values of the loss's own parameters."""
        loss = self.config
        values = {"log_inverse_temperature": -jnp.log(jnp.asarray(loss.temperature, dtype))}
        if loss.sigmoid:
            values["sigmoid_bias"] = jnp.asarray(loss.sigmoid_bias, dtype)
        return values

    def partition_table(self) -> tuple[tuple[str, tuple[()]], ...]:
        """Rows for the loss's own parameters."""
        return tuple((name, ()) for name in jax.eval_shape(lambda: self.learnt(jnp.float32)))

    def frozen(self) -> tuple[str, ...]:
        """Patterns of those of them that are not learnt."""
        learns = self.contrastive and self.config.learnable_temperature
        return () if learns else ("log_inverse_temperature",)

    def check(self) -> None:
        """Checks names, ranges, and what goes together.

        Raises:
          UserError: no term with a weight, a value that an option does not know or that is out of
            range, or options that do not go together or do nothing.
        """
        loss = self.config
        if not any(loss[term] for term in TERMS):
            raise UserError(
                f"config.loss has no term; give one of {', '.join(TERMS)} a weight above 0"
            )
        self._check_choices()
        self._check_ranges()
        check_sigreg(self.config.sigreg)
        self._check_together()

    def _check_choices(self) -> None:
        choices: Mapping[str, Any] = {
            "equal_targets": EQUAL_TARGETS,
            "transport": TRANSPORTS,
            "regression_kind": KINDS,
        }
        for key, known in choices.items():
            if self.config[key] not in known:
                raise UserError(
                    f"config.loss.{key} is {self.config[key]!r}; use one of {', '.join(known)}"
                )

    def _check_ranges(self) -> None:
        def demand(key: str, holds: Callable[[Any], bool], mend: str) -> None:
            value = self.config[key]
            # Not a number is in no range.
            if not (math.isfinite(value) and holds(value)):
                raise UserError(f"config.loss.{key} is {value}; {mend}")

        weights = (f"vicreg_weights.{name}" for name in self.config.vicreg_weights)
        for key in (*TERMS, *weights, "barlow_twins_redundancy"):
            demand(key, lambda x: x >= 0, "a weight is 0 or more")
        demand("temperature", lambda x: x > 0, "give a number above 0")
        demand("maximum_inverse_temperature", lambda x: x > 0, "give a number above 0")
        demand("hardness", lambda x: x >= 0, "give 0, which is plain, or more")
        demand("label_smoothing", lambda x: 0 <= x < 1, "give a number from 0 to below 1")
        demand("tile", lambda x: x >= 1, "give 1 or more")

    def _check_together(self) -> None:
        loss = self.config
        highest = loss.maximum_inverse_temperature * (1 + 1e-6)
        if loss.learnable_temperature and 1 / loss.temperature > highest:
            raise UserError(
                f"config.loss.temperature is {loss.temperature}, whose inverse is above "
                f"maximum_inverse_temperature={loss.maximum_inverse_temperature}; raise one of "
                "them, or set learnable_temperature=False"
            )
        for key in ("hardness", "label_smoothing"):
            if loss[key] and not loss.info_nce:
                raise UserError(
                    f"config.loss.{key} is {loss[key]} and does nothing without InfoNCE; set it "
                    "to 0, or give info_nce a weight above 0"
                )
        if loss.hardness and (loss.label_smoothing or loss.equal_targets == "positives"):
            raise UserError(
                f"config.loss.hardness is {loss.hardness}, which goes neither with label_smoothing "
                "nor with equal_targets='positives'; set it to 0"
            )

    def __call__(
        self,
        prediction: jax.Array,
        target: jax.Array,
        *,
        learnt: Mapping[str, jax.Array],
        target_hash: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted sum, and the value of each term with its metrics.

        Args:
          prediction: `[B, S]`.
          target: `[B, S]`.
          learnt: the current values of `learnt()`.
          target_hash: int `[B]`, equal for equal targets.
          step: SIGReg's slices are a function of (seed, step) alone.
        """
        total = jnp.zeros((), jnp.promote_types(prediction.dtype, jnp.float32))
        metrics: Metrics = {}
        if self.contrastive:
            metrics |= self._contrast(prediction, target, learnt, target_hash)
        metrics |= self._without_negatives(prediction, target)
        for index, (name, x) in enumerate((("prediction", prediction), ("target", target))):
            if self.config[f"sigreg_{name}"]:
                key = slice_key(self.seed, step, index)
                metrics[f"sigreg_{name}"] = sigreg_loss(x, key, **self.config.sigreg)
        for term in TERMS:
            if self.config[term]:
                total += self.config[term] * metrics[term]
        return total, metrics

    def _contrast(self, prediction, target, learnt, target_hash) -> Metrics:
        loss = self.config
        scale = self._inverse_temperature(learnt["log_inverse_temperature"])
        options = {
            "inverse_temperature": scale,
            "target_hash": target_hash,
            "equal_targets": loss.equal_targets,
            "transport": loss.transport,
            "tile": loss.tile,
        }
        metrics: Metrics = {"temperature": 1.0 / scale}
        if loss.sigmoid:
            bias = learnt["sigmoid_bias"]
            value, found = sigmoid(prediction, target, bias=bias, **options)
            metrics |= {**found, "sigmoid": value, "sigmoid_bias": bias}
        if loss.info_nce:
            value, found = info_nce(
                prediction,
                target,
                hardness=loss.hardness,
                label_smoothing=loss.label_smoothing,
                **options,
            )
            metrics |= {**found, "info_nce": value}
        return metrics

    def _inverse_temperature(self, log_value: jax.Array) -> jax.Array:
        if not self.config.learnable_temperature:
            return jnp.exp(widen(log_value))
        return inverse_temperature(log_value, self.config.maximum_inverse_temperature)

    def _without_negatives(self, prediction: jax.Array, target: jax.Array) -> Metrics:
        loss = self.config
        metrics: Metrics = {}
        if loss.regression:
            goal = jax.lax.stop_gradient(target) if loss.stop_target_gradient else target
            metrics["regression"] = regression(prediction, goal, loss.regression_kind)
        baselines = {
            "vicreg": partial(vicreg, **loss.vicreg_weights),
            "barlow_twins": partial(barlow_twins, redundancy=loss.barlow_twins_redundancy),
        }
        for name, function in baselines.items():
            if loss[name]:
                value, found = function(prediction, target)
                metrics |= {f"{name}_{key}": x for key, x in found.items()}
                metrics[name] = value
        return metrics
