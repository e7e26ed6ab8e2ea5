"""V-JEPA 2.1: V-JEPA 2 that also accounts for what it sees, at four depths (arXiv 2603.14482).

What is new over V-JEPA 2:

- **Dense loss.** The predictor says something of the visible tokens too, by a head of its own;
  their L1 has the weight lambda / sqrt(d), d being the distance to the nearest masked token.
- **Deep supervision.** Targets are the tokens of four layers, one after another, each layer-normed
  by itself; the predictor reads the same four of the context encoder.
- **Images** have a patch embedding of one frame, and both modalities a learned vector. A batch may
  have clips and images side by side (`data.images`).
- **Distillation** (`Distillation`): a small model predicts a large frozen one.

By itself the dense loss costs ten points on ImageNet, which deep supervision wins back (the paper's
ablation): use both or neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from ml_collections import ConfigDict

from jepa.errors import UserError, check_keys
from jepa.interop import parameters
from jepa.losses.dense import distance_to_masked, ramp
from jepa.losses.regression import regression
from jepa.methods.base import Batch, Metrics, Outputs, Params, Requirements
from jepa.methods.masked_batch import IMAGES, Mask
from jepa.methods.masked_model import default_augment, default_encoder, default_predictor
from jepa.methods.masked_prediction import MaskedPrediction, apply, at, function_of, mean
from jepa.methods.network_checks import check_network
from jepa.methods.v_jepa_2 import check_rope
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.vit import VideoTransformer
from jepa.nn.frames import to_float
from jepa.parallel import partition


def default_model() -> ConfigDict:
    """The `model` section with its defaults: a small model for 64-pixel clips.

    `encoder.taps` are the numbers of layers that are supervised, the last of them all; the
    published code numbers layers from zero. `encoder.image_tokenizer` is whether single frames have
    a patch embedding of their own, and modalities a vector.
    """
    encoder = default_encoder()
    encoder.taps = (2, 3, 5, 6)
    encoder.image_tokenizer = True
    predictor = default_predictor(mask_tokens=3)
    return ConfigDict(
        {
            "encoder": encoder,
            "predictor": predictor,
            "augment": default_augment(),
            # Published, converted or exported weights to start from.
            "weights": "",
        }
    )


def default_loss() -> ConfigDict:
    """The `loss` section with its defaults.

    Keys:
      kind: of `jepa.losses.regression`.
      context_weight, image_context_weight: lambda for clips and for images.
      distance_weighted: whether the visible tokens' loss is divided by the root of their distance
        to what is masked.
      ramp: steps (start, end) between which lambda rises from zero; () for none. The published code
        has (15000, 30000) written into it, so that a short run never sees the dense loss.
      image_share: what images count for in the loss, where a batch has clips and images.
    """
    return ConfigDict(
        {
            "kind": "l1",
            "context_weight": 0.5,
            "image_context_weight": 0.7,
            "distance_weighted": True,
            "ramp": (),
            "image_share": 0.5,
        }
    )


class VJEPA21(MaskedPrediction):
    """The method; masks come from the sampler `tubes`."""

    default_model = staticmethod(default_model)
    default_loss = staticmethod(default_loss)

    def build_predictor(self) -> MaskPredictor:
        """A predictor that also speaks of the context, and reads all levels through one MLP."""
        return MaskPredictor(
            **self.model.predictor,
            features=self.features(),
            embed_hidden=self.encoder.width if len(self.encoder.taps) > 1 else None,
            predicts_context=True,
            modalities=self.encoder.image_tokenizer,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def check(self, config: ConfigDict) -> None:
        """Checks what must fit the rest of the config.

        Raises:
          UserError: as in `MaskedPrediction` and `VJEPA2`; levels that do not end with the last
            layer; masks that are not tubes; a ramp that is no pair; a share or a weight out of
            range.
        """
        super().check(config)
        check_rope(config)
        encoder, loss = config.model.encoder, config.loss
        taps = list(encoder.taps)
        if taps and (taps != sorted(set(taps)) or taps[0] < 1 or taps[-1] != encoder.depth):
            raise UserError(
                f"config.model.encoder.taps is {tuple(taps)}; give numbers of layers that rise to "
                f"the depth, {encoder.depth}, or () for the last layer alone"
            )
        steps = tuple(loss.ramp)
        whole = all(isinstance(step, int) for step in steps)
        if steps and not (whole and len(steps) == 2 and 0 <= steps[0] < steps[1]):
            raise UserError(f"config.loss.ramp is {steps}; give (start, end) in steps, or ()")
        for key in ("context_weight", "image_context_weight"):
            if not 0 <= loss[key] < math.inf:
                raise UserError(f"config.loss.{key} is {loss[key]}; give a number of at least 0")
        if not 0 <= loss.image_share <= 1:
            raise UserError(
                f"config.loss.image_share is {loss.image_share}; give a number between 0 and 1"
            )
        _check_masks("data", config.data)
        if config.data.get(IMAGES):
            self._check_images(config)

    def _check_images(self, config: ConfigDict) -> None:
        images, encoder = config.data[IMAGES], config.model.encoder
        _check_masks(f"data.{IMAGES}", images)
        patch, rows = images.get("patch", encoder.patch), images.get("batch", 0)
        if patch != encoder.patch:
            raise UserError(
                f"config.data.{IMAGES}.patch is {patch} and config.model.encoder.patch is "
                f"{encoder.patch}; make them equal"
            )
        shards, clips = config.mesh.data * config.mesh.fsdp, config.train.global_batch
        divisor = clips if config.train.accumulate > 1 else shards
        if rows % divisor:
            raise UserError(
                f"config.data.{IMAGES}.batch is {rows}; make it a multiple of {divisor}, "
                + ("the clips" if divisor == clips else "the devices that share a batch")
            )

    def compare(
        self,
        outputs: Outputs,
        params: Params,
        video: jax.Array,
        goal: jax.Array,
        mask: Mask,
        places: jax.Array,
    ) -> jax.Array | None:
        """Adds the context's arrays too: `context/NAME` and `context_target/NAME` `[B, Kc, F]`.

        `scalars["weight/NAME"]` `[B, Kc]` is what each counts for, lambda included.
        """
        context = super().compare(outputs, params, video, goal, mask, places)
        assert context is not None
        outputs.tokens[f"context/{mask.name}"] = context
        outputs.tokens[f"context_target/{mask.name}"] = at(goal, mask.context)
        image = video.shape[1] == 1
        weight = self.loss.image_context_weight if image else self.loss.context_weight
        weights = jnp.full(mask.context.shape, weight, jnp.float32)
        if self.loss.distance_weighted:
            grid = self.encoder.grid(*video.shape[1:4])
            weights *= jax.lax.rsqrt(distance_to_masked(mask.context, mask.targets, grid))
        outputs.scalars[f"weight/{mask.name}"] = weights
        return context

    def objective(self, outputs: Outputs, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean over masks of the targets' distance and the weighted one of the context.

        Where a batch has images, those count `image_share` and the clips the rest. Metrics as in
        `MaskedPrediction`, and the weighted distance of each mask's context, before the ramp.
        """
        losses = self.distances(outputs)
        contexts = {name: self._context(outputs, name) for name in losses}
        scale = ramp(step, *self.loss.ramp) if self.loss.ramp else 1.0
        totals = {name: value + scale * contexts[name] for name, value in losses.items()}
        images = {name: totals.pop(name) for name in losses if name.startswith(f"{IMAGES}/")}
        loss = mean(totals)
        if images:
            share = self.loss.image_share
            loss = (1 - share) * loss + share * mean(images)
        named = {f"context_{name}": value for name, value in contexts.items()}
        return loss, {**self.metrics(outputs, losses), **named}

    def _context(self, outputs: Outputs, name: str) -> jax.Array:
        """The mean over visible tokens of weight times distance; weights need not sum to one."""
        weights = outputs.scalars[f"weight/{name}"]
        distance = regression(
            outputs.tokens[f"context/{name}"],
            outputs.tokens[f"context_target/{name}"],
            self.loss.kind,
            weights=weights,
        )
        return distance * jnp.mean(weights.astype(distance.dtype))


def default_distillation() -> ConfigDict:
    """The `model` section of `Distillation`: that of `VJEPA21` for the last layer, and `teacher`.

    `teacher` has the fields of an encoder, as it was trained, and `weights`: a file of its
    parameters, as `experiments.export` writes them, or a published or converted checkpoint.
    """
    model = default_model()
    model.encoder.taps = ()
    model.teacher = default_encoder()
    model.teacher.taps = ()
    model.teacher.image_tokenizer = True
    model.teacher.weights = ""
    return model


class Distillation(VJEPA21):
    """A small student predicts the last layer of a large frozen teacher.

    The predictor's output has the teacher's width. There is no moving average; the teacher lies
    under `teacher/` and gets neither gradients nor memory of the optimizer.
    """

    default_model = staticmethod(default_distillation)

    def __init__(self, config: ConfigDict):
        """Builds student, predictor and teacher.

        Raises:
          UserError: a key of `model` or `loss` that does not exist, or a network that cannot be.
        """
        check_keys("model", config.model, self.default_model())
        check_network("model.teacher", config.model.teacher)
        teacher = dict(config.model.teacher)
        self.weights = str(teacher.pop("weights"))
        self.dtype = jnp.dtype(config.dtype)
        self.param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        self.teacher = self.build_encoder(teacher)
        super().__init__(config)
        self.requirements = Requirements(frozen=("teacher/.*",))

    def features(self) -> int:
        """F, the teacher's width."""
        return self.teacher.width

    def build_table(self) -> list[Any]:
        """The rows of all parameters."""
        return [
            *super().build_table(),
            *partition.prefixed("teacher", self.teacher.partition_table()),
        ]

    def check(self, config: ConfigDict) -> None:
        """Checks what must fit the rest of the config.

        Raises:
          UserError: as in `VJEPA21`; a teacher without weights, or with other tokens.
        """
        super().check(config)
        if not self.weights:
            raise UserError(
                "config.model.teacher.weights is empty, and a teacher at its random first values "
                "has nothing to teach; give a file of parameters"
            )
        student, teacher = config.model.encoder, config.model.teacher
        for key in ("patch", "tubelet", "image_tokenizer"):
            if student[key] != teacher[key]:
                raise UserError(
                    f"config.model.encoder.{key} is {student[key]} and config.model.teacher.{key} "
                    f"is {teacher[key]}; student and teacher must see the same tokens: make them "
                    "equal"
                )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Params]:
        """Draws parameters, the teacher's too, which `pretrained` then replaces."""
        params, state = super().init(rng, batch)
        video = to_float(jax.tree.map(lambda x: x[:1], batch["video"]), self.dtype)
        teacher = unfreeze(self.teacher.init(rng, video)["params"])
        return {**params, "teacher": teacher}, state

    def pretrained(self) -> Mapping[str, Any]:
        """The teacher's weights, and the student's if the config names any."""
        side, frames = self.teacher.patch, self.teacher.tubelet
        cell = jnp.zeros((1, frames, side, side, 3))
        wanted = jax.eval_shape(self.teacher.init, jax.random.key(0), cell)["params"]
        key, fields = "config.model.teacher.weights", function_of(self.teacher)
        teacher = parameters.load_into(self.weights, wanted, fields, key)
        return {**super().pretrained(), "teacher": teacher}

    def goal(self, params: Params, target_params: Params | None, video: jax.Array) -> jax.Array:
        """The teacher's last layer, normalised."""
        del target_params
        tokens = apply(self.teacher, params["teacher"], video)
        return jax.lax.stop_gradient(self.normalised(tokens, self.teacher.width))

    def target_encoder(self) -> VideoTransformer:
        """The teacher."""
        return self.teacher


def _check_masks(section: str, data: Mapping[str, Any]) -> None:
    sampler = (data.get("masks") or {}).get("sampler")
    if sampler != "tubes":
        raise UserError(
            f"config.{section}.masks.sampler is {sampler!r}; this method speaks of the context "
            "once for each mask: use 'tubes'"
        )
