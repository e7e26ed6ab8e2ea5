"""LeJEPA: views of an image agree, and what they agree on fills a Gaussian (arXiv 2511.08544).

One encoder, one projector, two terms: the views' projections are pulled to their centre, and SIGReg
pulls the projections of a batch towards N(0, I), which a constant is far from. There is no teacher,
no stop-gradient and no predictor. The same views and networks serve two baselines, VICReg and
Barlow Twins, so that only the loss differs; see `loss.kind`.

Where the paper and its code disagree, the configs in configs/lejepa/ say so. Of this library:

- The encoder has no CLS token. Features are means over tokens, which is also what the authors take
  of transformers without one.
- A local view's positions are stretched to the range of a global one (`model.stretch_positions`),
  as in the published code, which interpolates a learnt table to the smaller grid.

Letters: B images, V views of each, S pixels of a view's side, D width of the features, P width of
the projections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from ml_collections import ConfigDict

from jepa.errors import UserError, check_keys
from jepa.losses.precision import widen
from jepa.methods.base import Batch, Metrics, Outputs, Params, Requirements
from jepa.methods.network_checks import check_network
from jepa.methods.views_loss import ViewsLoss, default_loss
from jepa.models import flops as count
from jepa.models.projector import NORMS, Projector
from jepa.models.vit import VideoTransformer
from jepa.nn.frames import frames_shape, normalise, to_float, to_rgb
from jepa.nn.norms import LayerNorm
from jepa.nn.views import Views, draw_views
from jepa.parallel import partition

# Views by the names of their outputs; the centre is that of the first.
VIEWS = ("global", "local")


def default_model() -> ConfigDict:
    """The `model` section with its defaults: ViT-S/16 and the paper's views of 224 pixels."""
    colours: dict[str, Any] = {"jitter": 0.8, "grey": 0.2, "blur": 0.5, "solarise": 0.2}
    of_global = Views(count=2, size=224, scale=(0.3, 1.0), **colours)
    of_local = Views(count=6, size=96, scale=(0.05, 0.3), **colours)
    return ConfigDict(
        {
            "global_views": dataclasses.asdict(of_global),
            "local_views": dataclasses.asdict(of_local),  # count 0 for none
            # Positions of any grid span those of a global view's; otherwise they count tokens.
            "stretch_positions": True,
            "encoder": {
                "patch": 16,
                "width": 384,
                "depth": 12,
                "heads": 6,
                "mlp_ratio": 4.0,
                "rope": "none",
                "positions": "sincos_2d",
                "gelu": "exact",
                "remat": "none",
                "scan": True,
            },
            "projector": {
                "features": 64,
                "hidden": (2048, 2048),
                "norm": "batch",  # or "layer", "none"
                "momentum": 0.1,  # share of a new batch in batch norm's averages
            },
            # `embed` concatenates the means over tokens of the last so many layers. The paper's
            # probes read two.
            "feature_layers": 1,
        }
    )


class LeJEPA:
    """The method; see `jepa.methods.base.Method` for the protocol."""

    def __init__(self, config: ConfigDict):
        """Builds the networks from `config.model`, `config.loss`, `config.dtype`, `config.seed`.

        Raises:
          UserError: a key of `model` or `loss` that does not exist, or an encoder that cannot be.
        """
        for section, default in (("model", default_model()), ("loss", default_loss())):
            check_keys(section, config[section], default)
        check_network("model.encoder", config.model.encoder)
        self.model: ConfigDict = config.model
        self.loss = ViewsLoss(config.loss, config.seed)
        self.dtype = jnp.dtype(config.dtype)
        self.param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.views = {name: _views(self.model[f"{name}_views"]) for name in VIEWS}
        grid = self.views["global"].size // self.model.encoder.patch
        self.encoder = VideoTransformer(
            **self.model.encoder,
            tubelet=1,
            pretrain_grid=grid if self.model.stretch_positions else None,
            **types,
        )
        projector = {**self.model.projector, "hidden": tuple(self.model.projector.hidden)}
        self.projector = Projector(**projector, **types)
        self.partition_table = (
            *partition.prefixed("encoder", self.encoder.partition_table()),
            *partition.prefixed("projector", self.projector.partition_table()),
        )
        self.requirements = Requirements()

    def check(self, config: ConfigDict) -> None:
        """Checks what must fit the rest of the config.

        Raises:
          UserError: clips instead of images, views that patches do not fill, an unknown norm or
            loss, a number out of range, or heads that the tensor axis does not divide.
        """
        model, encoder = config.model, config.model.encoder
        if config.data.frames != 1:
            raise UserError(
                f"config.data.frames is {config.data.frames}; views are drawn of images: set it "
                "to 1"
            )
        for name, views in self.views.items():
            views.check(f"model.{name}_views")
            if views.count and views.size % encoder.patch:
                raise UserError(
                    f"config.model.{name}_views.size is {views.size}, which patches of "
                    f"{encoder.patch} do not fill; make it a multiple of config.model.encoder.patch"
                )
        if not self.views["global"].count:
            raise UserError("config.model.global_views.count is 0; draw at least one")
        if model.projector.norm not in NORMS:
            raise UserError(
                f"config.model.projector.norm is {model.projector.norm!r}; use one of "
                f"{', '.join(NORMS)}"
            )
        for key, widths in (
            ("features", (model.projector.features,)),
            ("hidden", model.projector.hidden),
        ):
            if any(width < 1 for width in widths):
                raise UserError(
                    f"config.model.projector.{key} is {model.projector[key]}; give widths of at "
                    "least 1"
                )
        if not 0 < model.projector.momentum <= 1:
            raise UserError(
                f"config.model.projector.momentum is {model.projector.momentum}; give a share "
                "above 0, and at most 1"
            )
        if not 1 <= model.feature_layers <= encoder.depth:
            raise UserError(
                f"config.model.feature_layers is {model.feature_layers}; give a number from 1 to "
                f"the encoder's depth, {encoder.depth}"
            )
        if encoder.heads % config.mesh.tensor:
            raise UserError(
                f"config.model.encoder.heads is {encoder.heads}, which config.mesh.tensor="
                f"{config.mesh.tensor} does not divide; change one of them"
            )
        self.loss.check(**{name: views.count for name, views in self.views.items()})

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Params]:
        """Draws parameters, and zeros and ones for the averages of batch norm."""
        del batch  # only the views decide
        first, second = jax.random.split(rng)
        size = self.views["global"].size
        encoder = self.encoder.init(first, jnp.zeros((1, 1, size, size, 3), self.dtype))
        projector = self.projector.init(
            second, jnp.zeros((2, self.encoder.width), self.dtype), train=True
        )
        state = unfreeze(projector.get("batch_stats", {}))
        params = {"encoder": encoder["params"], "projector": projector["params"]}
        return unfreeze(params), {"projector": state} if state else {}

    def pretrained(self) -> Mapping[str, Any]:
        """Nothing: the method starts from random weights."""
        return {}

    def draw(self, rng: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """The views of a batch of images, RGB `[B, V, S, S, 3]` in 0..1, by name."""
        images = to_rgb(batch["video"], self.dtype)[:, 0]
        drawn = {}
        for index, (name, views) in enumerate(self.views.items()):
            if views.count:
                x = draw_views(jax.random.fold_in(rng, index), images, views)
                drawn[name] = partition.constrain(x, "batch", None, None, None, None)
        return drawn

    def represent(
        self,
        params: Params,
        target_params: Params | None,
        state: Params,
        batch: Batch,
        rng: jax.Array,
    ) -> tuple[Outputs, Params]:
        """Returns `tokens["global"]` and `tokens["local"]`, projections `[B, V, P]` of the views.

        Batch norm sees all views of the batch as one. `pooled["features"]` `[B, D]`, of the first
        view, is for diagnostics.
        """
        del target_params
        features = {name: self._features(params, x) for name, x in self.draw(rng, batch).items()}
        together = jnp.concatenate(list(features.values()), axis=1)
        rows = together.reshape(-1, together.shape[-1])
        projected, state = self._project(params, state, rows, train=True)
        projected = projected.reshape(*together.shape[:2], -1)
        cuts = [self.views["global"].count]
        parts = dict(zip(VIEWS, jnp.split(projected, cuts, axis=1), strict=True))
        tokens = {name: parts[name] for name in features}
        return Outputs(tokens=tokens, pooled={"features": together[:, 0]}), state

    def _features(self, params: Params, views: jax.Array) -> jax.Array:
        """Means over tokens `[B, V, D]` of views `[B, V, S, S, 3]`, float32 or wider."""
        batch, number, *size = views.shape
        images = normalise(views, self.dtype).reshape(batch * number, 1, *size)
        images = partition.constrain(images, "batch", None, None, None, None)
        tokens: Any = self.encoder.apply({"params": params["encoder"]}, images)
        return jnp.mean(widen(tokens), axis=1).reshape(batch, number, -1)

    def _project(
        self, params: Params, state: Params, features: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Params]:
        variables = {"params": params["projector"], "batch_stats": state.get("projector", {})}
        projected, new = self.projector.apply(
            variables, features, train=train, mutable=["batch_stats"] if train else []
        )
        return projected, {"projector": unfreeze(new["batch_stats"])} if train and state else state

    def objective(self, outputs: Outputs, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The loss of the views' projections; see `jepa.methods.views_loss`.

        Metrics besides the loss's own: `feature_std`, over the images of the batch, of a feature; 0
        at collapse.
        """
        by_name = {name: jnp.swapaxes(x, 0, 1) for name, x in outputs.tokens.items()}
        loss, metrics = self.loss(by_name["global"], by_name.get("local"), step=step)
        features = jax.lax.stop_gradient(outputs.pooled["features"])
        return loss, {**metrics, "feature_std": jnp.mean(jnp.std(features, axis=0))}

    def embed(self, params: Params, state: Params, batch: Batch) -> Outputs:
        """Returns features of whole images, of any size that the patches fill.

        `tokens["video"]` `[B, N, D]`, the last layer's; `pooled["video"]` `[B, L * D]`, the means
        over tokens of the last `feature_layers` layers, each behind the encoder's last norm, in the
        order of the layers; `pooled["projection"]` `[B, P]`, by the averages of batch norm.
        """
        video = to_float(batch["video"], self.dtype)
        depth = self.encoder.depth
        taps = tuple(range(depth - self.model.feature_layers + 1, depth))
        tokens, tapped = self.encoder.apply(
            {"params": params["encoder"]}, video, None, taps, method="levels"
        )
        norm = LayerNorm(dtype=self.dtype, param_dtype=self.param_dtype)
        levels = [norm.apply({"params": params["encoder"]["norm"]}, x) for x in tapped]
        pooled = [jnp.mean(widen(x), axis=1) for x in (*levels, tokens)]
        projected, _ = self._project(params, state, pooled[-1], train=False)
        return Outputs(
            tokens={"video": tokens},
            pooled={
                "video": jnp.concatenate(pooled, axis=-1),
                "projection": widen(projected),
            },
        )

    def flops(self, batch: Batch) -> float:
        """Analytic FLOPs of a train step: forward and backward through all views, and the loss.

        Drawing the views is not counted.
        """
        images, *_ = frames_shape(batch["video"])
        total = 0.0
        for views in (views for views in self.views.values() if views.count):
            one = count.video_transformer(self.encoder, 1, views.size, views.size)
            one += self.projector.flops(1, self.encoder.width)
            total += 3.0 * views.count * one
        number = sum(views.count for views in self.views.values())
        return images * total + self.loss.flops(number, images, self.projector.features)


def _views(section: Mapping[str, Any]) -> Views:
    """Of a config, whose pairs may be lists."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in section.items()
    }
    return Views(**values)
