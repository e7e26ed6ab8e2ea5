"""What I-JEPA, V-JEPA, V-JEPA 2 and 2.1 share: predict what is hidden from what is seen.

The context encoder sees some tokens of a clip; the predictor says, for places that it did not see,
what the target encoder (a moving average of the context encoder, which sees everything) has there.
Targets are normalised by a LayerNorm without parameters, and no gradient reaches them.

Letters: B clips, T frames, H, W pixels, N tokens of the whole clip, Kc context tokens, M target
blocks of a mask, Kt tokens of each, D width, F numbers of a target (D, or D times the levels).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from ml_collections import ConfigDict

from jepa.errors import UserError, check_keys
from jepa.losses.regression import KINDS, regression
from jepa.methods.base import Batch, Metrics, Outputs, Params, Requirements
from jepa.models import flops as count
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.vit import VideoTransformer
from jepa.nn.frames import frames_shape, to_float
from jepa.nn.norms import LayerNorm
from jepa.nn.rotary import grid_positions
from jepa.parallel import partition

# The networks' parts are named in the config by what they are; their types are the run's.
_DTYPES = ("dtype", "param_dtype")


class MaskedPrediction:
    """A method of this family; see `jepa.methods.base.Method` for the protocol.

    A subclass says what its sections of the config are by default.
    """

    @staticmethod
    def default_model() -> ConfigDict:
        """The `model` section: `encoder` and `predictor`, fields of their networks."""
        raise NotImplementedError

    @staticmethod
    def default_loss() -> ConfigDict:
        """The `loss` section: `kind`, of `jepa.losses.regression`."""
        raise NotImplementedError

    def __init__(self, config: ConfigDict):
        """Builds the networks from `config.model`, `config.loss` and `config.dtype`.

        Raises:
          UserError: a key of `model` or `loss` that does not exist.
        """
        for section, default in (("model", self.default_model()), ("loss", self.default_loss())):
            check_keys(section, config[section], default)
        self.model: ConfigDict = config.model
        self.loss: ConfigDict = config.loss
        self.dtype = jnp.dtype(config.dtype)
        self.param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        types = dict(zip(_DTYPES, (self.dtype, self.param_dtype), strict=True))
        self.encoder = VideoTransformer(**self.model.encoder, **types)
        self.predictor = MaskPredictor(**self.model.predictor, features=self.features(), **types)
        # Statistics in float32; the targets then have the type of the predictions.
        self.target_norm = LayerNorm(affine=False, dtype=self.dtype)
        self.partition_table = self._partition_table()
        self.requirements = Requirements(ema=True)

    def features(self) -> int:
        """F."""
        return self.model.encoder.width

    def _partition_table(self) -> list[Any]:
        return [
            *partition.prefixed("encoder", self.encoder.partition_table()),
            *partition.prefixed("predictor", self.predictor.partition_table()),
        ]

    def check(self, config: ConfigDict) -> None:
        """Checks what must fit the rest of the config.

        Raises:
          UserError: no masks in the batch, tokens of another size than the masks', an unknown loss,
            or heads that the tensor axis does not divide.
        """
        data = config.data
        if "masks" not in data.get("streams", ()):
            raise UserError("config.data.streams has no 'masks', which this method predicts by")
        for key in ("patch", "tubelet"):
            if data[key] != config.model.encoder[key]:
                raise UserError(
                    f"config.data.{key} is {data[key]} and config.model.encoder.{key} is "
                    f"{config.model.encoder[key]}; masks are drawn over the encoder's tokens: make "
                    "them equal"
                )
        if config.loss.kind not in KINDS:
            raise UserError(
                f"config.loss.kind is {config.loss.kind!r}; use one of {', '.join(KINDS)}"
            )
        for name in ("encoder", "predictor"):
            heads, tensor = config.model[name].heads, config.mesh.tensor
            if heads % tensor:
                raise UserError(
                    f"config.model.{name}.heads is {heads}, which config.mesh.tensor={tensor} does "
                    "not divide; change one of them"
                )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Params]:
        """Draws parameters for a batch of this structure; there is no mutable state."""
        first, second = jax.random.split(rng)
        one = jax.tree.map(lambda x: x[:1], batch)
        video = to_float(one["video"], self.dtype)
        encoder = unfreeze(self.encoder.init(first, video)["params"])
        _, context, targets = next(_masks(one["masks"]))
        seen = jnp.zeros((*context.shape, self.features()), self.dtype)
        predictor = self.predictor.init(
            second, seen, context, targets[:, 0], self.places(video.shape[1:4])
        )
        return {"encoder": encoder, "predictor": unfreeze(predictor["params"])}, {}

    def pretrained(self) -> Mapping[str, Any]:
        """Nothing: these methods start from random weights."""
        return {}

    def places(self, size: tuple[int, ...]) -> jax.Array:
        """Frame, row and column `[3, N]` of every token of a clip of `(T, H, W)`."""
        return grid_positions(
            self.encoder.grid(*size),
            pretrain_grid=self.encoder.pretrain_grid,
            dtype=self.param_dtype,
        )

    def tokens(self, params: Params, video: jax.Array, ids: jax.Array | None = None) -> jax.Array:
        """The encoder's tokens `[B, N or K, F]` of normalised frames; all, or those at `ids`."""
        return self.encoder.apply({"params": params["encoder"]}, video, ids)

    def targets(self, params: Params, video: jax.Array) -> jax.Array:
        """What is predicted at each place, `[B, N, F]`, without a gradient."""
        return jax.lax.stop_gradient(self.target_norm.apply({}, self.tokens(params, video)))

    def represent(
        self,
        params: Params,
        target_params: Params | None,
        state: Params,
        batch: Batch,
        rng: jax.Array,
    ) -> tuple[Outputs, Params]:
        """Returns, for every mask NAME, `[B, M * Kt, F]` tokens.

        `prediction/NAME` and `target/NAME` are to be compared; `copy/NAME`, `[B, 1, F]`, is the
        mean target of what the context encoder saw: a guess that needs no predictor.
        """
        del rng
        assert target_params is not None
        video = to_float(batch["video"], self.dtype)
        goal = self.targets(target_params, video)
        places = self.places(video.shape[1:4])
        tokens: dict[str, jax.Array] = {}
        for index, (name, context, targets) in enumerate(_masks(batch["masks"])):
            flat = targets.reshape(targets.shape[0], -1)
            tokens[f"prediction/{name}"] = self._predict(
                params, video, context, targets, places, index
            )
            tokens[f"target/{name}"] = _at(goal, flat)
            tokens[f"copy/{name}"] = jnp.mean(_at(goal, context), axis=1, keepdims=True)
        return Outputs(tokens=tokens), state

    def _predict(
        self,
        params: Params,
        video: jax.Array,
        context: jax.Array,
        targets: jax.Array,
        places: jax.Array,
        index: int,
    ) -> jax.Array:
        """Predictions `[B, M * Kt, F]`; each block of targets is predicted by itself."""
        batch, blocks, size = targets.shape
        seen = self.tokens(params, video, context)
        predicted, _ = self.predictor.apply(
            {"params": params["predictor"]},
            jnp.repeat(seen, blocks, axis=0),
            jnp.repeat(context, blocks, axis=0),
            targets.reshape(batch * blocks, size),
            places,
            mask_token=index % self.predictor.mask_tokens,
        )
        return predicted.reshape(batch, blocks * size, -1)

    def objective(self, outputs: Outputs, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean over masks of the distance between predictions and targets.

        Metrics: the distance of each mask; `prediction_over_copy`, that distance over the one of
        the guess that needs no predictor (1 where nothing is learnt about places, well below 1 in a
        healthy run); `target_std`, how much the targets differ over tokens and clips (0 at
        collapse, at most 1).
        """
        del step
        losses, copies, spreads = {}, [], []
        for name in sorted(n.partition("/")[2] for n in outputs.tokens if n.startswith("target/")):
            target = outputs.tokens[f"target/{name}"]
            losses[name] = regression(outputs.tokens[f"prediction/{name}"], target, self.loss.kind)
            copy = jnp.broadcast_to(outputs.tokens[f"copy/{name}"], target.shape)
            copies.append(regression(copy, target, self.loss.kind))
            wide = target.astype(losses[name].dtype)
            spreads.append(jnp.mean(jnp.std(wide, axis=(0, 1))))
        loss = sum(losses.values()) / len(losses)
        copied = jnp.maximum(sum(copies) / len(copies), jnp.finfo(loss.dtype).tiny)
        metrics = {f"{self.loss.kind}_{name}": value for name, value in losses.items()}
        metrics["prediction_over_copy"] = jax.lax.stop_gradient(loss) / copied
        metrics["target_std"] = sum(spreads) / len(spreads)
        return loss, metrics

    def embed(self, params: Params, state: Params, batch: Batch) -> Outputs:
        """Returns the encoder's `tokens["video"]` `[B, N, F]` and their mean, `pooled["video"]`."""
        del state
        tokens = self.tokens(params, to_float(batch["video"], self.dtype))
        wide = jnp.promote_types(tokens.dtype, jnp.float32)
        return Outputs(
            tokens={"video": tokens}, pooled={"video": jnp.mean(tokens, axis=1, dtype=wide)}
        )

    def flops(self, batch: Batch) -> float:
        """Analytic FLOPs of a train step: forward and backward, and the target's forward pass."""
        clips, *size = frames_shape(batch["video"])
        total = count.video_transformer(self.encoder, *size)
        for _, context, targets in _masks(batch["masks"]):
            seen, (blocks, hidden) = context.shape[1], targets.shape[1:]
            total += 3.0 * count.video_transformer(self.encoder, *size, visible=seen)
            total += (
                3.0
                * blocks
                * count.mask_predictor(
                    self.predictor, context=seen, targets=hidden, inputs=self.features()
                )
            )
        return clips * total


def _masks(masks: Batch) -> Iterator[tuple[str, Any, Any]]:
    """(name, context `[B, Kc]`, targets `[B, M, Kt]`) of each mask of a batch, in a fixed order."""
    if "context" in masks:
        yield "blocks", masks["context"], masks["targets"]
        return
    for name in sorted(masks):
        target = masks[name]["target"]
        yield name, masks[name]["context"], target.reshape(target.shape[0], 1, target.shape[1])


def _at(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take_along_axis(tokens, ids[..., None], axis=1)
