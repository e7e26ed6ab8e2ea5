"""Cases of `loss_cases`: other statistics against the normal distribution."""

import functools

import numpy as np
from loss_cases import ROWS, Case, embeddings
from scipy import special, stats

from jepa.losses.multivariate import bhep, henze_zirkler
from jepa.losses.normality import STATISTICS


def ndtr(z):
    """The normal distribution function; for the complex step, by its derivative."""
    density = np.exp(-(np.real(z) ** 2) / 2) / np.sqrt(2 * np.pi)
    return special.ndtr(np.real(z)) + 1j * np.imag(z) * density


def log_ndtr(z):
    value = special.log_ndtr(np.real(z))
    slope = np.exp(-(np.real(z) ** 2) / 2 - value) / np.sqrt(2 * np.pi)
    return value + 1j * np.imag(z) * slope


def ordered(x):
    return np.take_along_axis(x, np.argsort(np.real(x), axis=0, kind="stable"), axis=0)


def cramer_von_mises(x):
    n = len(x)
    ranks = np.arange(1, n + 1)[:, None]
    return 1 / (12 * n) + ((ndtr(ordered(x)) - (2 * ranks - 1) / (2 * n)) ** 2).sum(0)


def watson(x):
    return cramer_von_mises(x) - len(x) * (ndtr(x).mean(0) - 0.5) ** 2


def anderson_darling(x):
    x, n = ordered(x), len(x)
    odd = 2 * np.arange(1, n + 1)[:, None] - 1
    return -n - (odd / n * (log_ndtr(x) + log_ndtr(-x[::-1]))).sum(0)


def shapiro_wilk(x):
    x, n = ordered(x), len(x)
    scores = stats.norm.ppf((np.arange(1, n + 1) - 0.375) / (n + 0.25))[:, None]
    product = ((scores - scores.mean()) * (x - x.mean(0))).sum(0)
    return n * (1 - product**2 / ((scores**2).sum() * ((x - x.mean(0)) ** 2).sum(0)))


def moments(x):
    hermite = (x, x**2 - 1, x**3 - 3 * x, x**4 - 6 * x**2 + 3)
    return sum(len(x) * h.mean(0) ** 2 / f for h, f in zip(hermite, (1, 2, 6, 24), strict=True))


def mean_variance(x):
    n = len(x)
    variance = ((x - x.mean(0)) ** 2).sum(0) / (n - 1)
    return n * x.mean(0) ** 2 / variance + (n - 1) * (variance - 1) ** 2 / 2


def jarque_bera(x):
    n, centred = len(x), x - x.mean(0)
    variance = (centred**2).mean(0)
    skewness, kurtosis = (centred**3).mean(0), (centred**4).mean(0)
    shape = skewness**2 / variance**3 + (kurtosis / variance**2 - 3) ** 2 / 4
    return mean_variance(x) + n / 6 * shape


def reference_bhep(x, beta):
    n, d = x.shape
    b = beta**2
    pairs = ((x[:, None] - x) ** 2).sum(-1)
    first = np.exp(-b / 2 * pairs).sum() / n
    second = 2 * (1 + b) ** (-d / 2) * np.exp(-b / (2 + 2 * b) * (x**2).sum(1)).sum()
    return first - second + n * (1 + 2 * b) ** (-d / 2)


def reference_henze_zirkler(x):
    n, d = x.shape
    return reference_bhep(x, (n * (2 * d + 1) / 4) ** (1 / (d + 4)) / np.sqrt(2))


REFERENCES = {
    "cramer_von_mises": cramer_von_mises,
    "anderson_darling": anderson_darling,
    "watson": watson,
    "shapiro_wilk": shapiro_wilk,
    "moments": moments,
    "jarque_bera": jarque_bera,
    "mean_variance": mean_variance,
}


def samples():
    """`[ROWS, 8]`, skewed, some off centre; 8 slices, which 2, 4 and 8 devices divide."""
    rng = np.random.default_rng(2)
    return {"projected": rng.gamma(3.0, size=(ROWS, 8)) / 2 - rng.random(8) - 1}


def weighted(functions, names, inputs):
    """A sum over statistics and slices, none of which counts as another does."""
    x = inputs["projected"]
    slices = np.arange(1, x.shape[1] + 1) / x.shape[1]
    return sum((functions[n](x) * slices).sum() * (i + 1) for i, n in enumerate(names))


def statistics_case(name, *names, slices=8):
    def inputs():
        return {"projected": samples()["projected"][:, :slices]}

    return Case(
        name,
        functools.partial(weighted, STATISTICS, names),
        functools.partial(weighted, REFERENCES, names),
        inputs,
        bfloat16=("projected",),
    )


CASES = [
    statistics_case("anderson_darling", "anderson_darling"),
    # Three slices are sorted by every device.
    statistics_case("order_statistics", "shapiro_wilk", "watson", "cramer_von_mises", slices=3),
    statistics_case("moment_statistics", "jarque_bera", "moments", "mean_variance"),
    Case(
        "bhep_and_henze_zirkler",
        lambda inputs: bhep(inputs["x"], beta=0.7) + 3 * henze_zirkler(inputs["x"]),
        lambda inputs: reference_bhep(inputs["x"], 0.7) + 3 * reference_henze_zirkler(inputs["x"]),
        lambda: {"x": embeddings()[0] + 0.3},
        bfloat16=("x",),
    ),
]
