"""Cases of `loss_cases`: latent regression, VICReg and Barlow Twins."""

import numpy as np
from loss_cases import ROWS, Case, embeddings

from jepa.losses.barlow_twins import barlow_twins
from jepa.losses.regression import regression
from jepa.losses.vicreg import vicreg, vicreg_views


def pair():
    p, t = embeddings(width=5)
    return {"p": p, "t": 0.5 * t - 0.2}


def off_diagonal(matrix):
    return matrix - np.diag(np.diag(matrix))


def reference_vicreg(views, weights=(25, 25, 1)):
    """Pair by pair and view by view; twice the mean over views, which for two is their sum."""
    pairs = [(i, j) for i in range(len(views)) for j in range(i)]
    invariance = np.mean([((views[i] - views[j]) ** 2).mean() for i, j in pairs])
    variance = covariance = 0
    for x in views:
        centred = x - x.mean(0)
        matrix = centred.T @ centred / (len(x) - 1)
        spread = np.sqrt(np.diag(matrix) + 1e-4)
        variance += np.where(np.real(spread) < 1, 1 - spread, 0).mean() * 2 / len(views)
        covariance += (off_diagonal(matrix) ** 2).sum() / len(matrix) * 2 / len(views)
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


def reference_barlow_twins(p, t, redundancy=5e-3):
    p, t = p - p.mean(0), t - t.mean(0)
    p, t = (x / np.sqrt((x**2).mean(0) + 1e-5) for x in (p, t))
    matrix = p.T @ t / len(p)
    return ((1 - np.diag(matrix)) ** 2).sum() + redundancy * (off_diagonal(matrix) ** 2).sum()


def tokens():
    rng = np.random.default_rng(4)
    p, t = rng.standard_normal((2, ROWS, 3, 5))
    # Very uneven: a mean of means of devices would be far off.
    weights = rng.random((ROWS, 3))
    weights[3:11] = 0
    weights[0] = 5.0
    return {"p": p, "t": t, "weights": weights}


def reference_regression(kind, p, t, weights):
    if kind == "l2":
        errors = ((p - t) ** 2).mean(-1)
    elif kind == "smooth_l1":
        size = np.sign(np.real(p - t)) * (p - t)
        errors = np.where(np.real(size) < 1, size**2 / 2, size - 0.5).mean(-1)
    else:
        lengths = np.sqrt((p**2).sum(-1) * (t**2).sum(-1))
        errors = 1 - (p * t).sum(-1) / lengths
    return (weights * errors).sum() / weights.sum()


def regression_case(*kinds):
    """The sum of some kinds."""

    def loss(inputs):
        p, t, weights = (inputs[name] for name in ("p", "t", "weights"))
        return sum(regression(p, t, kind, weights=weights) for kind in kinds)

    return Case(
        "_".join(("regression", *kinds)),
        loss,
        lambda inputs: sum(reference_regression(kind, **inputs) for kind in kinds),
        tokens,
        fixed=("weights",),
        bfloat16=("p", "t"),
    )


CASES = [
    regression_case("l2", "smooth_l1"),
    regression_case("cosine"),
    Case(
        "vicreg",
        lambda inputs: vicreg(inputs["p"], inputs["t"])[0],
        lambda inputs: reference_vicreg([inputs["p"], inputs["t"]]),
        pair,
        bfloat16=("p", "t"),
    ),
    Case(
        "vicreg_views",
        lambda inputs: vicreg_views(inputs["x"], invariance=2, variance=3, covariance=5)[0],
        lambda inputs: reference_vicreg(inputs["x"], (2, 3, 5)),
        lambda: {"x": 0.7 * np.stack([*embeddings(1, 4), embeddings(2, 4)[0]])},
        views=("x",),
    ),
    Case(
        "barlow_twins",
        lambda inputs: barlow_twins(inputs["p"], inputs["t"], redundancy=0.1)[0],
        lambda inputs: reference_barlow_twins(**inputs, redundancy=0.1),
        pair,
        bfloat16=("p", "t"),
    ),
]
