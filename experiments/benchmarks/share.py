"""SIGReg's share of a train step of a vision transformer: counted, and measured on an accelerator.

The step: one forward and backward pass of a ViT over images, tokens averaged and projected to D
numbers by a perceptron with two hidden layers, SIGReg of the projections, and AdamW.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.measurement import Measurement, alternate, progress
from jepa.losses.sigreg import sigreg
from jepa.models import flops
from jepa.models.vit import VITS, VideoTransformer

TIME = "SIGReg's share of a train step: time"
BAR_PERCENT = 3
HIDDEN = 2048  # of the projector, as LeJEPA's
STEPS = 10  # in a timed round


class Network(nn.Module):
    """Images `[B, 1, H, W, 3]` to projections `[B, D]`."""

    model: str
    dim: int
    dtype: str

    def setup(self) -> None:
        """Builds the parts."""
        self.encoder = encoder(self.model, self.dtype)
        self.projector = [nn.Dense(n, dtype=self.dtype) for n in (HIDDEN, HIDDEN, self.dim)]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes, averages over tokens and projects."""
        x = jnp.mean(self.encoder(images), axis=1)
        for layer in self.projector[:-1]:
            x = nn.gelu(layer(x))
        return self.projector[-1](x)


def encoder(model: str, dtype: str) -> VideoTransformer:
    """The vision transformer of a size in `jepa.models.vit.VITS`, with patches of 16 pixels."""
    return VideoTransformer(**VITS[model], patch=16, tubelet=1, dtype=dtype)


def measure(
    *,
    model: str,
    batch: int,
    size: int,
    dim: int,
    slices: int,
    knots: int,
    rounds: int,
    bar: bool,
) -> list[dict[str, Any]]:
    """Shares of FLOPs and bytes, and of time where there is an accelerator.

    Args:
        model: A size in `jepa.models.vit.VITS`.
        batch: Images a step.
        size: Their height and width in pixels.
        dim: D.
        slices: Of SIGReg.
        knots: Of SIGReg.
        rounds: Alternating rounds of the measurement.
        bar: Whether the sizes are those that the bar names.
    """
    note = f"ViT {model}/16, {size} px, batch {batch}, D {dim}, {slices:,} slices, {knots} knots"
    found = _counts(model, batch, size, dim, slices, knots, note)
    if jax.default_backend() == "cpu":
        progress("share of a train step: time is not measured; it needs a GPU or TPU")
        timed = [Measurement(TIME, None, "%", f"needs a GPU or TPU; {note}")]
    else:
        timed = times(model, batch, size, dim, slices, knots, rounds, note)
    if bar:
        timed[0] = timed[0].held_to(at_most=BAR_PERCENT)
    return [dataclasses.asdict(item) for item in (*found, *timed)]


def _counts(
    model: str, batch: int, size: int, dim: int, slices: int, knots: int, about: str
) -> list[Measurement]:
    network = encoder(model, "bfloat16")
    layers = [(network.width, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, dim)]
    forward = flops.video_transformer(network, 1, size, size)
    forward += sum(flops.linear(1, inputs, outputs) for inputs, outputs in layers)
    step_flops = 3 * batch * forward
    step_bytes = _step_bytes(network, batch, size, layers)
    our_flops = flops.sigreg(batch, dim, slices, knots)
    our_bytes = _sigreg_bytes(batch, dim, slices)
    found = []
    for name, ours, rest, unit in (
        ("FLOPs", our_flops, step_flops, "GFLOP"),
        ("bytes", our_bytes, step_bytes, "GB"),
    ):
        note = (
            f"{ours / 1e9:.3g} of {(ours + rest) / 1e9:,.0f} {unit}, counted, "
            f"without drawing the slices; {about}"
        )
        percent = 100 * ours / (ours + rest)
        found.append(Measurement(f"SIGReg's share of a train step: {name}", percent, "%", note))
    return found


def _step_bytes(
    network: VideoTransformer, batch: int, size: int, layers: list[tuple[int, int]]
) -> float:
    """Bytes that matrix products and AdamW move at the least, without SIGReg.

    A product reads its two operands and writes its result once, in bfloat16, and there are three
    of its size in a step (forward, and two backward). Attention reads and writes queries, keys,
    values and results only, as a fused kernel does. AdamW reads parameter, gradient and two
    moments in float32, and writes all but the gradient. All else is taken to be fused.
    """
    width, hidden = network.width, network.mlp_width()
    tokens = batch * math.prod(network.grid(1, size, size))
    products = [(tokens, 3 * 16**2, width), *((batch, *layer) for layer in layers)]
    block = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    products += [(tokens, *layer) for layer in block] * network.depth
    moved = sum(rows * (inputs + outputs) + inputs * outputs for rows, inputs, outputs in products)
    moved += network.depth * tokens * 4 * width
    parameters = sum(inputs * outputs for _, inputs, outputs in products)
    return 3 * 2 * moved + 7 * 4 * parameters


def _sigreg_bytes(samples: int, width: int, slices: int) -> float:
    """Bytes by the same rule, in float32.

    Slices are written, and read forward and backward (what drawing them moves besides is not
    counted); samples are read and their gradient is written; projections are written, read for the
    sums, read for their gradient, and that is written and read.
    """
    return 4.0 * (3 * width * slices + 2 * samples * width + 5 * samples * slices)


def times(
    model: str, batch: int, size: int, dim: int, slices: int, knots: int, rounds: int, note: str
) -> list[Measurement]:
    """Seconds of the step with and without SIGReg, and the share that is the difference."""
    with_sigreg = _Steps(model, batch, size, dim, slices, knots)
    without = _Steps(model, batch, size, dim, None, knots)
    calls: dict[str, Callable[[], object]] = {"with SIGReg": with_sigreg, "without": without}
    for call in calls.values():
        call()
    progress(f"share of a train step: {rounds} round(s) of {STEPS} steps with and without SIGReg")
    seconds = alternate(calls, rounds)
    percent = statistics.median(
        100 * (a - b) / a for a, b in zip(seconds["with SIGReg"], seconds["without"], strict=True)
    )
    device = jax.devices()[0].device_kind
    how = f"{note}, bfloat16; median of {rounds} alternating rounds of {STEPS} steps"
    return [
        Measurement(
            TIME,
            percent,
            "%",
            f"the step with SIGReg less the step without; {how}",
            device,
        ),
        *(
            Measurement(
                f"train step {name}: time", statistics.median(values) / STEPS, "s", how, device
            )
            for name, values in seconds.items()
        ),
    ]


class _Steps:
    """`STEPS` train steps in a row; `slices` None leaves SIGReg out."""

    def __init__(self, model: str, batch: int, size: int, dim: int, slices: int | None, knots: int):
        network = Network(model, dim, "bfloat16")
        rng = np.random.default_rng(0)
        images = rng.standard_normal((batch, 1, size, size, 3), np.float32)
        self._images = jax.device_put(images.astype(jnp.bfloat16))
        self._key = jax.random.key(0)
        optimizer = optax.adamw(1e-4)
        params = jax.jit(network.init)(self._key, self._images[:1])
        self._state = (params, optimizer.init(params))

        def loss(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
            x = jnp.asarray(network.apply(params, images), jnp.float32)
            value = jnp.mean(x**2)
            if slices is not None:
                value += sigreg(x, key, slices=slices, knots=knots)
            return value

        def step(state: Any, images: jax.Array, key: jax.Array) -> Any:
            params, moments = state
            updates, moments = optimizer.update(
                jax.grad(loss)(params, images, key), moments, params
            )
            return optax.apply_updates(params, updates), moments

        self._step = jax.jit(step, donate_argnums=0)

    def __call__(self) -> None:
        for _ in range(STEPS):
            self._state = self._step(self._state, self._images, self._key)
        jax.block_until_ready(self._state)
