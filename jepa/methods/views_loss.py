"""What projections of several views are told by: LeJEPA's loss, or a baseline's in its place.

Letters: V views (G global ones and local ones behind them), N samples of the global batch, P width
of the projections, lambda the weight of SIGReg.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jepa.errors import UserError
from jepa.losses.barlow_twins import barlow_twins
from jepa.losses.precision import widen
from jepa.losses.sigreg import sigreg, slice_key
from jepa.losses.vicreg import vicreg_views
from jepa.methods.base import Metrics
from jepa.methods.sigreg_options import check_sigreg
from jepa.models import flops as count

KINDS = ("lejepa", "vicreg", "barlow_twins")
CENTRES = ("global", "all")


def default_loss() -> ConfigDict:
    """The `loss` section with its defaults: the paper's LeJEPA."""
    return ConfigDict(
        {
            "kind": "lejepa",  # or a baseline: "vicreg" (any views), "barlow_twins" (two of them)
            # Lambda: the loss is (1 - lambda) * invariance + lambda * SIGReg.
            "sigreg_weight": 0.05,
            # What views are pulled to: the mean of the "global" ones (paper), or of "all".
            "centre": "global",
            "sigreg": {
                "slices": 1024,
                "knots": 17,
                "t_max": 5.0,
                "form": "integral",  # the paper's [-5, 5]; "folded" is its code's, with t_max 3
                "views": "each",
                "statistic": "epps_pulley",
                "chunk": placeholder(int),
                "implementation": "xla",
            },
            # Alpha of `selection_score`, loss / lambda^alpha.
            "selection_exponent": 0.4,
            "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
            "barlow_twins": {"redundancy": 5e-3},
        }
    )


class ViewsLoss:
    """The loss as a function of projections `[V, N, P]`."""

    def __init__(self, config: ConfigDict, seed: int):
        """Takes the `loss` section; `seed` is that of SIGReg's slices."""
        self.config = config
        self.seed = seed

    def check(self, **views: int) -> None:
        """Checks names and ranges.

        Args:
          **views: the number of views by their name, `global` and `local`.

        Raises:
          UserError: a value that an option does not know, a number out of range, or too few or too
            many views for the loss.
        """
        loss, total = self.config, sum(views.values())
        choices = {
            "kind": (loss.kind, KINDS),
            "centre": (loss.centre, CENTRES),
        }
        for key, (value, known) in choices.items():
            if value not in known:
                raise UserError(f"config.loss.{key} is {value!r}; use one of {', '.join(known)}")
        check_sigreg(loss.sigreg)
        if not 0 <= loss.sigreg_weight <= 1:
            raise UserError(
                f"config.loss.sigreg_weight is {loss.sigreg_weight}; give a number from 0 to 1"
            )
        for section in ("vicreg", "barlow_twins"):
            for key, value in loss[section].items():
                if not 0 <= value < math.inf:
                    raise UserError(
                        f"config.loss.{section}.{key} is {value}; give a number of at least 0"
                    )
        if total < 2:
            raise UserError(
                f"config.model draws {total} view of an image, with which none can agree; set "
                "global_views.count and local_views.count to 2 or more together"
            )
        if loss.kind == "barlow_twins" and total != 2:
            raise UserError(
                f"config.loss.kind is 'barlow_twins', which compares two views, and config.model "
                f"draws {total}; set global_views.count=2 and local_views.count=0"
            )

    def __call__(
        self, of_global: jax.Array, of_local: jax.Array | None, *, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss over the global batch, and its terms.

        Args:
          of_global: `[G, N, P]`.
          of_local: `[V - G, N, P]`, or None.
          step: SIGReg's slices are a function of (seed, step) alone.

        Metrics: the terms without weights; `projection_std`, over the batch, of a number of a
        projection (1 where SIGReg is content, 0 at collapse); with LeJEPA `selection_score`, see
        `selection_score`.
        """
        of_global = widen(of_global)
        views = of_global if of_local is None else jnp.concatenate([of_global, widen(of_local)])
        if self.config.kind == "lejepa":
            loss, metrics = self._lejepa(views, of_global, step)
        elif self.config.kind == "vicreg":
            loss, metrics = vicreg_views(views, **self.config.vicreg)
        else:
            loss, metrics = barlow_twins(views[0], views[1], **self.config.barlow_twins)
        spread = jnp.std(jax.lax.stop_gradient(views), axis=1)
        return loss, {**metrics, "projection_std": jnp.mean(spread)}

    def _lejepa(
        self, views: jax.Array, of_global: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """`(1 - lambda) * invariance + lambda * SIGReg`.

        Invariance is the mean over views, samples and dimensions of the squared distance from a
        projection to the centre of its image's views. (The paper writes the squared norm, a sum
        over dimensions; its algorithm and both published codes take this mean, and lambda was
        chosen for it.) Nothing stops a gradient.
        """
        centre = jnp.mean(of_global if self.config.centre == "global" else views, axis=0)
        invariance = jnp.mean(jnp.square(views - centre))
        gaussian = sigreg(views, slice_key(self.seed, step), **self.config.sigreg)
        weight = self.config.sigreg_weight
        loss = (1 - weight) * invariance + weight * gaussian
        metrics = {"invariance": invariance, "sigreg": gaussian}
        if weight:
            score = selection_score(loss, weight, self.config.selection_exponent)
            metrics["selection_score"] = jax.lax.stop_gradient(score)
        return loss, metrics

    def flops(self, views: int, samples: int, width: int) -> float:
        """FLOPs of SIGReg, forward and backward; the baselines' covariances are as small.

        Args:
          views: V.
          samples: N.
          width: P.
        """
        if self.config.kind != "lejepa":
            # A covariance or correlation of each view, and twice that backward.
            return 3.0 * views * count.linear(width, samples, width)
        settings = self.config.sigreg
        return views * count.sigreg(samples, width, settings.slices, settings.knots)


def selection_score(loss: jax.Array, weight: float, exponent: float = 0.4) -> jax.Array:
    """`loss / lambda ** exponent`, by which to choose among runs without labels; lower is better.

    LeJEPA's authors find that the loss ranks checkpoints as a linear probe does (rank correlation
    about 0.85), and better still (up to 0.99) over runs of different lambda with this scaling and
    an exponent of about 0.4. Within one run it ranks as the loss does. Measure it on data that was
    not trained on (`jepa.evaluation.held_out`), with the same views, batch size and form of SIGReg:
    all three change the number.

    Args:
      loss: LeJEPA's.
      weight: lambda, above 0.
      exponent: alpha.
    """
    return loss / weight**exponent
