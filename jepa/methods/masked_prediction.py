"""What I-JEPA, V-JEPA, V-JEPA 2 and 2.1 share: predict what is hidden from what is seen.

The context encoder sees some tokens of a clip; the predictor says, for places that it did not see,
what the target encoder (a moving average of the context encoder, which sees everything) has there.
Targets are normalised by a LayerNorm without parameters, and no gradient reaches them.

Letters: B clips, T frames, H, W pixels, N tokens of the whole clip, Kc context tokens, M target
blocks of a mask, Kt tokens of each, D width, F numbers of a target (D times the encoder's levels).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from ml_collections import ConfigDict

from jepa.errors import UserError, check_keys
from jepa.interop import parameters
from jepa.losses.regression import KINDS, regression
from jepa.methods.base import Batch, Metrics, Outputs, Params, Requirements
from jepa.methods.masked_batch import Mask, parts
from jepa.methods.network_checks import check_network
from jepa.models import flops as count
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.vit import IMAGE, VIDEO, VideoTransformer
from jepa.nn.frames import frames_shape, normalise, to_float, to_rgb
from jepa.nn.norms import LayerNorm
from jepa.nn.rotary import grid_positions
from jepa.nn.views import Colours, colour_clips
from jepa.parallel import partition

# Fields of a network that change what it computes and the shape of no parameter.
_FUNCTION = ("heads", "rope", "positions", "pretrain_grid", "taps", "gelu")


def function_of(network: Any) -> dict[str, Any]:
    """Returns the fields that weights of a network must agree with beside its shapes."""
    return {name: getattr(network, name) for name in _FUNCTION if hasattr(network, name)}


class MaskedPrediction:
    """A method of this family; see `jepa.methods.base.Method` for the protocol.

    A subclass says what its sections of the config are by default.
    """

    @staticmethod
    def default_model() -> ConfigDict:
        """The `model` section: `encoder` and `predictor`, fields of their networks; `augment`."""
        raise NotImplementedError

    @staticmethod
    def default_loss() -> ConfigDict:
        """The `loss` section: `kind`, of `jepa.losses.regression`."""
        raise NotImplementedError

    def __init__(self, config: ConfigDict):
        """Builds the networks from `config.model`, `config.loss` and `config.dtype`.

        Raises:
          UserError: a key of `model` or `loss` that does not exist, or a network that cannot be.
        """
        for section, default in (("model", self.default_model()), ("loss", self.default_loss())):
            check_keys(section, config[section], default)
        for name in ("encoder", "predictor"):
            check_network(f"model.{name}", config.model[name])
        self.model: ConfigDict = config.model
        self.loss: ConfigDict = config.loss
        self.dtype = jnp.dtype(config.dtype)
        # Master weights stay in float32 whatever the compute type, except in a float64 run.
        self.param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        augment = {**self.model.get("augment", {})}
        if "blur_sigma" in augment:  # a list, where the config was read back
            augment["blur_sigma"] = tuple(augment["blur_sigma"])
        self.colours = Colours(**augment)
        self.encoder = self.build_encoder(self.model.encoder)
        self.predictor = self.build_predictor()
        # Statistics in float32; the targets then have the type of the predictions.
        self.target_norm = LayerNorm(affine=False, dtype=self.dtype)
        self.partition_table = self.build_table()
        self.requirements = Requirements(ema=True)

    def build_encoder(self, section: Mapping[str, Any]) -> VideoTransformer:
        """An encoder of these fields."""
        values = dict(section)
        values["taps"] = tuple(values.get("taps", ()))
        return VideoTransformer(**values, dtype=self.dtype, param_dtype=self.param_dtype)

    def build_predictor(self) -> MaskPredictor:
        """The predictor of `config.model.predictor`."""
        return MaskPredictor(
            **self.model.predictor,
            features=self.features(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def build_table(self) -> list[Any]:
        """The rows of all parameters."""
        return [
            *partition.prefixed("encoder", self.encoder.partition_table()),
            *partition.prefixed("predictor", self.predictor.partition_table()),
        ]

    def features(self) -> int:
        """F, the numbers of a target."""
        return width_of(self.encoder)

    def check(self, config: ConfigDict) -> None:
        """Checks what must fit the rest of the config.

        Raises:
          UserError: no masks in the batch, tokens of another size than the masks', an unknown loss,
            an augmentation out of range, or heads that the tensor axis does not divide.
        """
        self.colours.check("model.augment")
        data = config.data
        if "masks" not in data.get("streams", ()):
            raise UserError("config.data.streams has no 'masks', which this method predicts by")
        for key, value in (("patch", 0), ("tubelet", 1)):
            if data.get(key, value) != config.model.encoder[key]:
                raise UserError(
                    f"config.data.{key} is {data.get(key, value)} and config.model.encoder.{key} "
                    f"is {config.model.encoder[key]}; masks are drawn over the encoder's tokens: "
                    "make them equal"
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
        """Draws parameters for a batch of this structure; there is no mutable state.

        Raises:
          UserError: more kinds of masks than mask tokens, where there is more than one token.
        """
        kinds = [mask for _, masks in parts(batch) for mask in masks]
        tokens = self.predictor.mask_tokens
        if 1 < tokens < len(kinds):
            raise UserError(
                f"config.model.predictor.mask_tokens is {tokens}, and a batch has {len(kinds)} "
                f"kinds of masks ({', '.join(mask.name for mask in kinds)}); give one for each, or "
                "1 for all"
            )
        first, second = jax.random.split(rng)
        video = to_float(jax.tree.map(lambda x: x[:1], batch["video"]), self.dtype)
        encoder = unfreeze(self.encoder.init(first, video)["params"])
        context = kinds[0].context[:1]
        target = kinds[0].targets[:1].reshape(1, -1)[:, : kinds[0].blocks[1]]
        seen = jnp.zeros((*context.shape, width_of(self.encoder)), self.dtype)
        predictor = self.predictor.init(
            second, seen, context, target, self.places(video.shape[1:4])
        )
        return {"encoder": encoder, "predictor": unfreeze(predictor["params"])}, {}

    def pretrained(self) -> Mapping[str, Any]:
        """The weights that `config.model.weights` names: of the encoder, and the predictor if any.

        UserError where they are of other networks than the config's.
        """
        path, key = self.model.get("weights", ""), "config.model.weights"
        if not path:
            return {}
        there, wanted = parameters.parts(path), self._shapes()
        networks = {"encoder": self.encoder, "predictor": self.predictor}
        return {
            name: parameters.load_into(path, wanted[name], function_of(network), key, part=name)
            for name, network in networks.items()
            if name == "encoder" or name in there
        }

    def _shapes(self) -> dict[str, Any]:
        """Shapes of all parameters, which the smallest clip tells."""
        side, frames, key = self.encoder.patch, self.encoder.tubelet, jax.random.key(0)
        cell, ids = jnp.zeros((1, frames, side, side, 3)), jnp.zeros((1, 1), jnp.int32)
        seen = jnp.zeros((1, 1, width_of(self.encoder)))
        places = self.places((frames, side, side))
        return {
            "encoder": jax.eval_shape(self.encoder.init, key, cell)["params"],
            "predictor": jax.eval_shape(self.predictor.init, key, seen, ids, ids, places)["params"],
        }

    def places(self, size: tuple[int, ...]) -> jax.Array:
        """Frame, row and column `[3, N]` of every token of a clip of `(T, H, W)`."""
        return grid_positions(
            self.encoder.grid(*size),
            pretrain_grid=self.encoder.pretrain_grid,
            dtype=self.param_dtype,
        )

    def tokens(self, params: Params, video: jax.Array, ids: jax.Array | None = None) -> jax.Array:
        """What the predictor reads `[B, N or K, D * levels]`: all tokens, or those at `ids`."""
        return apply(self.encoder, params["encoder"], video, ids, method="hierarchy")

    def normalised(self, tokens: jax.Array, width: int) -> jax.Array:
        """Tokens `[B, N, F]` as targets: each part of `width` numbers normalised by itself."""
        levels = tokens.reshape(*tokens.shape[:-1], -1, width)
        return apply(self.target_norm, {}, levels).reshape(tokens.shape)

    def goal(self, params: Params, target_params: Params | None, video: jax.Array) -> jax.Array:
        """What is to be predicted at each place, `[B, N, F]`, without a gradient."""
        del params
        assert target_params is not None
        tokens = self.tokens(target_params, video)
        return jax.lax.stop_gradient(self.normalised(tokens, self.encoder.width))

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
        outputs = Outputs()
        for number, (stream, masks) in enumerate(parts(batch)):
            video = self.augmented(rng, number, stream)
            goal = self.goal(params, target_params, video)
            places = self.places(video.shape[1:4])
            for mask in masks:
                self.compare(outputs, params, video, goal, mask, places)
        return outputs, state

    def augmented(self, rng: jax.Array, number: int, stream: Any) -> jax.Array:
        """What the networks read of a video stream, its colours moved where the config says so.

        Args:
          rng: of the step.
          number: of the stream in the batch.
          stream: as loaded.
        """
        if not (self.colours.move or self.colours.blur):
            return to_float(stream, self.dtype)
        drawn = colour_clips(
            jax.random.fold_in(rng, number), to_rgb(stream, self.dtype), self.colours
        )
        drawn = partition.constrain(drawn, "batch", None, None, None, None)
        return normalise(drawn, self.dtype)

    def compare(
        self,
        outputs: Outputs,
        params: Params,
        video: jax.Array,
        goal: jax.Array,
        mask: Mask,
        places: jax.Array,
    ) -> jax.Array | None:
        """Adds one mask's arrays to `outputs`; returns what was predicted for its context."""
        batch, (blocks, size) = video.shape[0], mask.blocks
        seen = self.tokens(params, video, mask.context)
        predicted, context = apply(
            self.predictor,
            params["predictor"],
            jnp.repeat(seen, blocks, axis=0),
            jnp.repeat(mask.context, blocks, axis=0),
            mask.targets.reshape(batch * blocks, size),
            places,
            mask_token=mask.number if self.predictor.mask_tokens > 1 else 0,
            modality=IMAGE if video.shape[1] == 1 else VIDEO,
        )
        flat = mask.targets.reshape(batch, -1)
        copied = jnp.mean(at(goal, mask.context), axis=1, keepdims=True)
        outputs.tokens[f"prediction/{mask.name}"] = predicted.reshape(batch, blocks * size, -1)
        outputs.tokens[f"target/{mask.name}"] = at(goal, flat)
        outputs.tokens[f"copy/{mask.name}"] = copied
        return context

    def objective(self, outputs: Outputs, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean over masks of the distance between predictions and targets.

        Metrics: the distance of each mask; `prediction_over_copy`, theirs over that of the guess
        that needs no predictor (1 where nothing is learnt about places, below 1 in a healthy run);
        `target_std`, how much targets differ over tokens and clips (0 at collapse, at most 1).
        """
        del step
        losses = self.distances(outputs)
        return mean(losses), self.metrics(outputs, losses)

    def distances(self, outputs: Outputs) -> dict[str, jax.Array]:
        """The distance between prediction and target, by the name of the mask."""
        return {
            name: regression(
                outputs.tokens[f"prediction/{name}"],
                outputs.tokens[f"target/{name}"],
                self.loss.kind,
            )
            for name in names(outputs)
        }

    def metrics(self, outputs: Outputs, losses: Mapping[str, jax.Array]) -> Metrics:
        """What `objective` says of the predictions."""
        copies, spreads = {}, {}
        for name in names(outputs):
            target = outputs.tokens[f"target/{name}"]
            copy = jnp.broadcast_to(outputs.tokens[f"copy/{name}"], target.shape)
            copies[name] = regression(copy, target, self.loss.kind)
            wide = target.astype(copies[name].dtype)
            spreads[name] = jnp.mean(jnp.std(wide, axis=(0, 1)))
        loss, copied = mean(losses), mean(copies)
        return {
            **{f"{self.loss.kind}_{name}": value for name, value in losses.items()},
            "prediction_over_copy": loss / jnp.maximum(copied, jnp.finfo(copied.dtype).tiny),
            "target_std": mean(spreads),
        }

    def embed(self, params: Params, state: Params, batch: Batch) -> Outputs:
        """Returns the encoder's `tokens["video"]` `[B, N, D]` and their mean, `pooled["video"]`."""
        del state
        video = to_float(batch["video"], self.dtype)
        tokens = apply(self.encoder, params["encoder"], video)
        wide = jnp.promote_types(tokens.dtype, jnp.float32)
        return Outputs(
            tokens={"video": tokens}, pooled={"video": jnp.mean(tokens, axis=1, dtype=wide)}
        )

    def flops(self, batch: Batch) -> float:
        """Analytic FLOPs of a train step: forward and backward, and the target's forward pass."""
        total = 0.0
        for video, masks in parts(batch):
            clips, *size = frames_shape(video)
            total += clips * count.video_transformer(self.target_encoder(), *size)
            for mask in masks:
                seen, (blocks, hidden) = mask.context.shape[1], mask.blocks
                encoded = count.video_transformer(self.encoder, *size, visible=seen)
                predicted = blocks * count.mask_predictor(
                    self.predictor, context=seen, targets=hidden, inputs=width_of(self.encoder)
                )
                total += 3.0 * clips * (encoded + predicted)
        return total

    def target_encoder(self) -> VideoTransformer:
        """The network that makes targets."""
        return self.encoder


def width_of(encoder: VideoTransformer) -> int:
    """Numbers of a token as `VideoTransformer.hierarchy` gives it."""
    return encoder.width * max(len(encoder.taps), 1)


def apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
    """What a module makes of its inputs with these parameters."""
    return module.apply({"params": params}, *inputs, **options)


def names(outputs: Outputs) -> list[str]:
    """The names of the masks whose arrays these are."""
    return sorted(name.partition("/")[2] for name in outputs.tokens if name.startswith("target/"))


def mean(values: Mapping[str, jax.Array]) -> jax.Array:
    """The mean of scalars by name."""
    return jnp.mean(jnp.stack(list(values.values())))


def at(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Tokens `[B, K, F]` of `[B, N, F]` at ids `[B, K]`."""
    return jnp.take_along_axis(tokens, ids[..., None], axis=1)
