"""Cases of `loss_cases` for SIGReg: the published forms, views, chunks."""

import functools

import jax
import numpy as np
from loss_cases import Case, embeddings

from jepa.losses.sigreg import random_slices, sigreg

SLICES, SEED = 12, 3


@functools.cache
def directions(width):
    return np.asarray(random_slices(jax.random.key(SEED), width, SLICES, "float32"), np.float64)


def epps_pulley(x, *, low, high, knots, fold):
    """N times the trapezoid sum over `knots` points of [low, high], as the definition has it."""
    t = np.linspace(low, high, knots)
    weights = np.full(knots, fold * (t[1] - t[0]))
    weights[[0, -1]] /= 2
    gaussian = np.exp(-(t**2) / 2)
    angles = (x @ directions(x.shape[-1]))[..., None] * t
    error = (np.cos(angles).mean(0) - gaussian) ** 2 + np.sin(angles).mean(0) ** 2
    return len(x) * np.mean(error @ (weights * gaussian))


def moments(x):
    hermite = (x, x**2 - 1, x**3 - 3 * x, x**4 - 6 * x**2 + 3)
    return sum(len(x) * h.mean(0) ** 2 / f for h, f in zip(hermite, (1, 2, 6, 24), strict=True))


FOLDED = {"low": 0.0, "high": 3.0, "knots": 17, "fold": 2}


def case(name, reference, inputs, **options):
    return Case(
        name=f"sigreg_{name}",
        loss=lambda a: sigreg(a["x"], jax.random.key(SEED), slices=SLICES, **options),
        reference=lambda a: reference(a["x"]),
        inputs=inputs,
        views=("x",) if inputs is views else (),
        bfloat16=("x",),
    )


def one():
    return {"x": embeddings()[1]}


def views():
    return {"x": np.stack(embeddings(seed=1))}


CASES = [
    case("folded", lambda x: epps_pulley(x, **FOLDED), one),
    # An even number of knots: the first is half a spacing from 0. Chunks of 5, 5 and 2.
    case(
        "integral_chunked_views",
        lambda x: sum(epps_pulley(v, low=-3.0, high=3.0, knots=10, fold=1) for v in x) / len(x),
        views,
        form="integral",
        knots=10,
        t_max=3.0,
        chunk=5,
    ),
    case(
        "moments",
        lambda x: np.mean(moments(x @ directions(6))),
        one,
        statistic="moments",
    ),
    case("pooled", lambda x: epps_pulley(x.reshape(-1, 6), **FOLDED), views, views="pooled"),
]
