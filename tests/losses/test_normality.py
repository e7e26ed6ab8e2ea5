import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_normality import REFERENCES
from compiled_text import collective_sizes
from scipy import integrate, stats

from jepa.losses.normality import STATISTICS
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated

NAMES = sorted(STATISTICS)
SORTED = ["cramer_von_mises", "anderson_darling", "watson", "shapiro_wilk"]
MOMENTS = ["moments", "jarque_bera", "mean_variance"]
STEPS = {name: jax.jit(STATISTICS[name]) for name in NAMES}
GRADIENTS = {name: jax.jit(jax.grad(lambda x, f=STATISTICS[name]: jnp.sum(f(x)))) for name in NAMES}


def samples(n=40, slices=3):
    rng = np.random.default_rng(0)
    return (rng.gamma(2.0, size=(n, slices)) - [0.5, 2.0, 3.0][:slices]).astype("float32")


def by_scipy(name, x):
    """A column's statistic from SciPy's functions and textbook formulas."""
    n = len(x)
    u = stats.norm.cdf(np.sort(x))
    z, i = stats.norm, np.arange(1, n + 1)
    jb = stats.jarque_bera(x).statistic
    t_squared = stats.ttest_1samp(x, 0).statistic ** 2
    variance = (n - 1) * (x.var(ddof=1) - 1) ** 2 / 2
    return {
        "cramer_von_mises": lambda: stats.cramervonmises(x, "norm").statistic,
        "anderson_darling": lambda: (
            -n - np.mean((2 * i - 1) * (np.log(u) + np.log(z.sf(np.sort(x))[::-1])))
        ),
        # As the variance of F_N - Phi over the circle: N times its integral less the squared mean.
        "watson": lambda: watson_by_integration(u),
        "shapiro_wilk": lambda: n * (1 - stats.pearsonr(np.sort(x), blom(n)).statistic ** 2),
        "moments": lambda: sum(
            n * np.polynomial.hermite_e.hermeval(x, np.eye(5)[k]).mean() ** 2 / f
            for k, f in [(1, 1), (2, 2), (3, 6), (4, 24)]
        ),
        "mean_variance": lambda: t_squared + variance,
        "jarque_bera": lambda: t_squared + variance + jb,
    }[name]()


def blom(n):
    return stats.norm.ppf((np.arange(1, n + 1) - 0.375) / (n + 0.25))


def watson_by_integration(u):
    ends = np.concatenate([[0.0], u, [1.0]])
    level = np.arange(len(u) + 1) / len(u)
    # F_N - v is linear between samples.
    first = (level * np.diff(ends) - np.diff(ends**2) / 2).sum()
    second = (((level - ends[:-1]) ** 3 - (level - ends[1:]) ** 3) / 3).sum()
    return len(u) * (second - first**2)


@pytest.mark.parametrize("name", NAMES)
def test_against_scipy(name):
    x = samples()
    wanted = [by_scipy(name, column) for column in x.T.astype("float64")]
    np.testing.assert_allclose(STEPS[name](x), wanted, rtol=2e-5)
    # The reference of the test on meshes is the same number.
    np.testing.assert_allclose(np.real(REFERENCES[name](x.astype("float64"))), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_float64(name):
    x = samples()
    with jax.enable_x64(True):
        wide = STEPS[name](jnp.asarray(x, "float64"))
        assert wide.dtype == "float64"
        np.testing.assert_allclose(wide, [by_scipy(name, c) for c in x.T.astype("float64")], 1e-10)


@pytest.mark.parametrize("name", SORTED)
def test_digits_at_a_large_batch(name):
    # 1 / N is small beside the sums that the formulas subtract.
    x = np.random.default_rng(1).standard_normal((8192, 2)).astype("float32")
    wanted = np.real(REFERENCES[name](x.astype("float64")))
    np.testing.assert_allclose(STEPS[name](x), wanted, rtol=5e-5)


MEANS = {"cramer_von_mises": 1 / 6, "anderson_darling": 1.0, "watson": 1 / 12, "moments": 4.0}


@pytest.mark.parametrize("count", [5, 50])
@pytest.mark.parametrize("name", MEANS)
def test_mean_under_the_null_is_exact_for_every_batch(name, count):
    x = np.random.default_rng(2).standard_normal((count, 20000)).astype("float32")
    values = np.asarray(STEPS[name](x))
    error = values.std() / np.sqrt(len(values))
    assert error < 0.05 * MEANS[name]
    np.testing.assert_allclose(values.mean(), MEANS[name], atol=4 * error)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
@pytest.mark.parametrize("name", ["cramer_von_mises", "anderson_darling", "watson"])
def test_mean_for_scaled_samples_is_a_known_integral(name, sigma):
    # E N (F_N - Phi)^2 = G (1 - G) + N (G - Phi)^2, where G is the law of the samples.
    count = 40

    def integrand(z):
        g, f = stats.norm.cdf(z / sigma), stats.norm.cdf(z)
        weight = 1 / (f * stats.norm.sf(z)) if name == "anderson_darling" else 1
        return (g * (1 - g) + count * (g - f) ** 2) * stats.norm.pdf(z) * weight

    wanted = 2 * integrate.quad(integrand, 0, 15)[0]
    if name == "watson":  # less N times the variance of mean(Phi(x)), x of N(0, sigma^2)
        square = integrate.quad(
            lambda z: (stats.norm.cdf(sigma * z) - 0.5) ** 2 * stats.norm.pdf(z), -15, 15
        )[0]
        wanted -= square
    x = sigma * np.random.default_rng(3).standard_normal((count, 20000)).astype("float32")
    values = np.asarray(STEPS[name](x))
    error = values.std() / np.sqrt(len(values))
    assert error < 0.02 * wanted
    np.testing.assert_allclose(values.mean(), wanted, atol=4 * error)


COLLAPSED = {
    "cramer_von_mises": 1 / 12,
    "anderson_darling": 2 * np.log(2) - 1,
    "watson": 1 / 12,
    "shapiro_wilk": 1.0,
    "moments": 7 / 8,
    "jarque_bera": 7 / 8 - 1 / 80,
    "mean_variance": 39 / 80,
}


@pytest.mark.parametrize("name", NAMES)
def test_collapse(name):
    value = STEPS[name](jnp.zeros((40, 3)))
    np.testing.assert_allclose(value / 40, COLLAPSED[name], rtol=1e-5)
    for level in (0.0, 0.1, 30.0):
        x = jnp.full((40, 3), level)
        assert np.isfinite(STEPS[name](x)).all() and np.isfinite(GRADIENTS[name](x)).all()
    np.testing.assert_allclose(STEPS["shapiro_wilk"](jnp.full((40, 3), 0.1)), 40)


@pytest.mark.parametrize("name", NAMES)
def test_samples_far_out(name):
    x = np.linspace(-30, 30, 40, dtype="float32")[:, None] * np.ones((1, 3), "float32")
    for far in (x, np.abs(x), x - 30):
        assert np.isfinite(STEPS[name](far)).all() and np.isfinite(GRADIENTS[name](far)).all()


def test_only_anderson_darling_pulls_on_an_outlier():
    x = np.random.default_rng(4).standard_normal((40, 3)).astype("float32")
    x[7] = 25.0
    # The largest of N = 40 has 1 - p = 1 / 80, and -log(1 - Phi) the slope 25.04 at 25.
    np.testing.assert_allclose(GRADIENTS["anderson_darling"](x)[7], 2 / 80 * 25.04, rtol=1e-3)
    assert not GRADIENTS["cramer_von_mises"](x)[7].any()
    assert not GRADIENTS["watson"](x)[7].any()


def test_order_of_departures():
    normal = np.random.default_rng(5).standard_normal((200, 16)).astype("float32")
    for name in set(NAMES) - {"shapiro_wilk"}:
        null, scaled, shifted, nothing = (
            STEPS[name](x).mean() for x in (normal, 1.7 * normal, normal + 0.7, 0 * normal)
        )
        assert 3 * null < min(scaled, shifted, nothing), name
        # Distances of distribution functions are bounded, moments are not: they forgive collapse
        # more easily than spread.
        assert (shifted < nothing) == (name != "mean_variance"), name
        assert (scaled < nothing) == (name not in MOMENTS), name
    # Shapiro-Wilk sees shape alone.
    f = STEPS["shapiro_wilk"]
    np.testing.assert_allclose(f(0.01 * normal + 0.7), f(normal), rtol=1e-3)
    assert f(normal**3).mean() > 10 * f(normal).mean()
    # The first two moments do not see shape.
    coin = np.sign(normal)
    assert STEPS["mean_variance"](coin).mean() < 3 < 20 < STEPS["jarque_bera"](coin).mean()


def crossing(name, slices):
    """Sizes of the collectives in value and gradient of `[256, slices]` on 8 devices."""
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        x = jax.ShapeDtypeStruct((256, slices), "float32", sharding=rows)
        step = jax.jit(
            lambda x: jax.value_and_grad(lambda x: jnp.mean(STATISTICS[name](x)))(x),
            out_shardings=(whole, rows),
        )
        return collective_sizes(step.lower(x).compile().as_text())


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_cross_devices_as_numbers_a_slice(name):
    assert sum(crossing(name, 16)) <= 5 * 16


@pytest.mark.parametrize("name", ["anderson_darling", "shapiro_wilk"])
def test_sorting_moves_slices_to_one_device(name):
    # There and back, an eighth of the samples a device, and the mean.
    assert sum(crossing(name, 16)) == 2 * 256 * 16 / 8 + 1


@pytest.mark.parametrize("name", NAMES)
def test_bad_shapes(name):
    for shape in ((4,), (1, 4), (2, 3, 4)):
        with pytest.raises(ValueError, match="N, S"):
            STATISTICS[name](jnp.zeros(shape))
