"""Fine-tuning: the encoder and a linear layer on its pooled features are trained together.

Layers nearer to the pixels learn more slowly, each by `layer_decay` less than the one above it
(Clark et al. 2020; as in BEiT, arXiv 2106.08254): the token embedding is the lowest of depth + 2
layers, the linear layer and the encoder's last norm the highest. AdamW, a linear warm-up and a
cosine to 0, cross-entropy with label smoothing.

Letters: B clips a batch, r clips, F features, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa.data.config import DataConfig
from jepa.data.evalset import EvalSet
from jepa.data.jobs import Progress
from jepa.errors import UserError
from jepa.evaluation import probes_features
from jepa.evaluation.probes_features import Encoder
from jepa.parallel import mesh as meshes
from jepa.parallel.partition import path_name

# What methods call the part of their parameters that embeds clips.
_ENCODERS = ("encoder", "x_encoder")
_NOT_DECAYED = ("bias", "scale")
_WARMUP = 0.1


@dataclasses.dataclass(frozen=True)
class Options:
    """How an encoder is fine-tuned.

    Attributes:
      epochs: over the training labels.
      batch_size: B, rounded up to a multiple of the batch parts of the mesh; what is left of an
        epoch is not seen.
      learning_rates: each is tried in a run of its own; the best on held-out labels is kept.
      weight_decay: decoupled, times the rate; biases and gains are not decayed.
      layer_decay: of the rate from a layer to the one below it; 1 for none.
      label_smoothing: share of a label that is spread over all classes.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (1e-3, 3e-4, 1e-4)
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    label_smoothing: float = 0.1


def rates(params: Any, decay: float) -> Any:
    """Returns the factor on the rate of each parameter of an encoder, broadcastable to it.

    Args:
      params: an encoder's; `blocks/...` have a leading axis for the layers, `patches/...` embed.
      decay: of the rate from a layer to the one below it.

    Raises:
      UserError: there is no `blocks`, so nobody can tell the layers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    depths = {leaf.shape[0] for path, leaf in leaves if path_name(path).startswith("blocks/")}
    if len(depths) != 1:
        raise UserError(
            "the encoder has no stack of 'blocks', so its layers cannot be told apart; set "
            "config.probe.finetune.layer_decay to 1"
        )
    (depth,) = depths

    def factor(path: Any, leaf: Any) -> np.ndarray | np.float32:
        name = path_name(path)
        if name.startswith("blocks/"):
            below = depth - np.arange(depth)
            return (decay**below).reshape(depth, *[1] * (leaf.ndim - 1)).astype(np.float32)
        return np.float32(1.0 if name.startswith("norm/") else decay ** (depth + 1))

    return jax.tree_util.tree_map_with_path(factor, params)


class FineTuner:
    """Fine-tunes one encoder for one label, again and again from the same start.

    Args:
      encoder: of a method, see `probes_features.of_method`; its arguments are left as they are.
      data: how clips are seen.
      classes: C.
      options: how it is trained.
      mesh: where the encoder's parameters lie; batches are cut over its data and fsdp axes.

    Raises:
      UserError: an encoder without parameters, or without the part that embeds clips.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: DataConfig,
        *,
        classes: int,
        options: Options,
        mesh: jax.sharding.Mesh,
    ):
        params = encoder.arguments[0] if encoder.arguments else {}
        names = [name for name in _ENCODERS if name in params]
        if not names:
            raise UserError(
                f"{encoder.name} has no parameters called {' or '.join(_ENCODERS)} to fine-tune; "
                "leave 'finetune' out of --probes"
            )
        self._name, self._encoder, self._mesh = names[0], encoder, mesh
        self._data = dataclasses.replace(data, streams=("video",))
        self._classes, self._options = classes, options
        shards = meshes.batch_shards(mesh)
        self.batch_size = -(-options.batch_size // shards) * shards
        self._factors = (
            jax.tree.map(lambda _: np.float32(1), params[self._name])
            if options.layer_decay == 1
            else rates(params[self._name], options.layer_decay)
        )
        self._adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
        self._step = jax.jit(self._advance, donate_argnums=(0, 1))
        self._forward = jax.jit(self._logits, out_shardings=meshes.replicated(mesh))

    def train(
        self, split: str, numbers: np.ndarray, labels: np.ndarray, *, rate: float, seed: int
    ) -> Any:
        """Returns the weights after `epochs` over some clips.

        Args:
          split: where they are.
          numbers: int `[r]`, records of the split.
          labels: int `[r]`, their classes.
          rate: the peak of the learning rate.
          seed: of the order of clips.
        """
        size = min(self.batch_size, len(numbers))
        shards = meshes.batch_shards(self._mesh)
        if size % shards:
            raise UserError(
                f"{size} labelled clips do not fill the {shards} batch parts of the mesh; raise "
                "probe.train_labels, or use fewer devices"
            )
        places = np.arange(len(numbers))
        epochs = self._options.epochs
        order = list(probes_features.batches(places, size, seed=seed, epochs=epochs))
        progress = Progress("fine-tuning", len(order), "step", main=jax.process_index() == 0)
        with jax.set_mesh(self._mesh), progress as shown:
            weights, state = jax.jit(self._begin)(self._encoder.arguments[0][self._name])
            clips = self._clips(split, numbers[np.concatenate(order)], size)
            for step, (places, (_, video)) in enumerate(zip(order, clips, strict=True)):
                weights, state = self._step(
                    weights,
                    state,
                    self._encoder.arguments,
                    self._put({"video": video, "label": labels[places].astype(np.int32)}),
                    np.float32(rate * _shape(step, len(order))),
                )
                shown.add(1)
        return weights

    def logits(self, weights: Any, split: str, numbers: np.ndarray) -> np.ndarray:
        """Returns `[r, C]` of records `numbers` of a split."""
        found = []
        with jax.set_mesh(self._mesh):
            for valid, video in self._clips(split, numbers, self.batch_size):
                made = self._forward(weights, self._encoder.arguments, self._put(video))
                found.append(np.asarray(made)[:valid])
        return np.concatenate(found)

    def _begin(self, params: Any) -> tuple[Any, Any]:
        sizes = jax.eval_shape(
            lambda video: self._encoder.apply(self._encoder.arguments, video)["pooled"],
            self._example(),
        )
        weights = {
            # A copy: a step consumes its weights, and the next rate starts from these again.
            "encoder": jax.tree.map(jnp.copy, params),
            "kernel": jnp.zeros((sizes.shape[1], self._classes)),
            "bias": jnp.zeros(self._classes),
        }
        return weights, self._adam.init(weights)

    def _example(self) -> Any:
        """The shapes of a batch."""
        side = (1, self._data.frames, self._data.size, self._data.size)
        if self._data.pixels == "rgb":
            return jax.ShapeDtypeStruct((*side, 3), np.uint8)
        half = (*side[:2], side[2] // 2, side[3] // 2, 2)
        return {
            "y": jax.ShapeDtypeStruct(side, np.uint8),
            "uv": jax.ShapeDtypeStruct(half, np.uint8),
        }

    def _clips(self, split: str, numbers: np.ndarray, size: int) -> Iterator[tuple[int, Any]]:
        return EvalSet(self._data, split).batches(size, numbers)

    def _put(self, batch: Any) -> Any:
        sharding = meshes.batch_sharding(self._mesh)

        def put(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(put, batch)

    def _logits(self, weights: Any, arguments: Any, video: Any) -> jax.Array:
        params, *rest = arguments
        whole = {**params, self._name: weights["encoder"]}
        pooled = self._encoder.apply((whole, *rest), video)["pooled"]
        wide = pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))
        return wide @ weights["kernel"] + weights["bias"]

    def _advance(
        self, weights: Any, state: Any, arguments: Any, batch: Any, rate: jax.Array
    ) -> tuple[Any, Any]:
        smoothing = self._options.label_smoothing

        def loss(weights: Any) -> jax.Array:
            logits = self._logits(weights, arguments, batch["video"])
            hot = jax.nn.one_hot(batch["label"], self._classes)
            goal = optax.smooth_labels(hot, smoothing)
            return jnp.mean(optax.softmax_cross_entropy(logits, goal))

        directions, state = self._adam.update(jax.grad(loss)(weights), state)
        factors = {"encoder": self._factors, "kernel": np.float32(1), "bias": np.float32(1)}

        def move(path: Any, old: jax.Array, direction: jax.Array, factor: Any) -> jax.Array:
            last = path_name(path).rsplit("/", 1)[-1]
            kept = 0.0 if last in _NOT_DECAYED else self._options.weight_decay
            return (old - rate * factor * (direction + kept * old)).astype(old.dtype)

        return jax.tree_util.tree_map_with_path(move, weights, directions, factors), state


def _shape(step: int, steps: int) -> float:
    """The learning rate over its peak: up in a tenth of the steps, then a cosine to 0."""
    up = max(1, round(_WARMUP * steps))
    if step < up:
        return (step + 1) / up
    return float((1 + np.cos(np.pi * (step - up) / max(1, steps - up))) / 2)
