import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_normality import reference_bhep
from compiled_text import collective_sizes

from jepa.losses.multivariate import (
    _squared_distances,
    bhep,
    henze_zirkler,
    henze_zirkler_beta,
)
from jepa.losses.sigreg import sigreg
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated

step = jax.jit(jax.value_and_grad(bhep), static_argnames="beta")


def samples(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype("float32")


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_one_dimension_by_integration(beta):
    x = samples(25, 1)[:, 0].astype("float64") * 1.5 + 0.3
    t = np.linspace(-12 * beta, 12 * beta, 20001)
    ecf = np.exp(1j * t[:, None] * x).mean(1)
    weight = np.exp(-((t / beta) ** 2) / 2) / (beta * np.sqrt(2 * np.pi))
    wanted = len(x) * np.trapezoid(abs(ecf - np.exp(-(t**2) / 2)) ** 2 * weight, t)
    got, _ = step(x[:, None].astype("float32"), beta=beta)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_it_is_sigreg_in_one_dimension():
    x = jnp.asarray(samples(30, 1) * 1.4 - 0.5)
    integral = sigreg(x, jax.random.key(0), slices=1, form="integral", knots=101, t_max=8.0)
    np.testing.assert_allclose(integral, np.sqrt(2 * np.pi) * step(x)[0], rtol=1e-5)


@pytest.mark.parametrize(("count", "width", "beta"), [(8, 2, 1.0), (64, 3, 0.6)])
def test_mean_for_gaussians_and_collapse(count, width, beta):
    b = beta**2
    many = jax.jit(jax.vmap(lambda x: bhep(x, beta=beta)))
    normal = samples(count * 2000, width).reshape(2000, count, width)
    for s in (1.0, 4.0):
        values = np.asarray(many(np.sqrt(s) * normal))
        wanted = (
            1
            + (count - 1) * (1 + 2 * s * b) ** (-width / 2)
            - 2 * count * (1 + b + s * b) ** (-width / 2)
            + count * (1 + 2 * b) ** (-width / 2)
        )
        if s == 1:
            np.testing.assert_allclose(wanted, 1 - (1 + 2 * b) ** (-width / 2))
        error = values.std() / np.sqrt(len(values))
        np.testing.assert_allclose(values.mean(), wanted, atol=4 * error)
    value, grad = step(jnp.zeros((count, width)), beta=beta)
    collapsed = 1 - 2 * (1 + b) ** (-width / 2) + (1 + 2 * b) ** (-width / 2)
    np.testing.assert_allclose(value, count * collapsed, rtol=1e-5)
    assert not grad.any()


def test_equal_samples_and_samples_far_out():
    x = np.repeat(samples(6, 4), 2, axis=0)
    value, grad = step(x, beta=1.0)
    np.testing.assert_allclose(value, reference_bhep(x.astype("float64"), 1.0), rtol=1e-5)
    np.testing.assert_array_equal(grad[::2], grad[1::2])
    value, grad = step(1e4 * x, beta=1.0)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_distances_are_exact_far_from_the_origin():
    # Without centring, |x|^2 + |y|^2 - 2 x.y would have no digit left.
    x = samples(16, 3) + 4096.0
    value, _ = step(x, beta=1.0)
    np.testing.assert_allclose(value, reference_bhep(x.astype("float64"), 1.0), rtol=1e-5)


def test_no_squared_distance_is_negative():
    # Nearly equal samples, where rounding decides the sign of the expanded square.
    x = samples(1, 64) + 1e-4 * samples(32, 64, 1)
    x[16:] = x[:16]
    x[0] += 50.0
    distances = np.asarray(_squared_distances(jnp.asarray(x)))
    assert (distances >= 0).all() and not np.diag(distances).any()


def test_henze_zirkler():
    beta = henze_zirkler_beta(50, 3)
    np.testing.assert_allclose(beta, (50 * 7 / 4) ** (1 / 7) / np.sqrt(2))
    f = jax.jit(henze_zirkler)
    x = samples(50, 3)
    np.testing.assert_allclose(f(x + 0.2), step(x + 0.2, beta=beta)[0], rtol=1e-6)
    # Location and scale count, as in SIGReg; the standardised test would not change.
    assert f(x) < min(f(x + 1), f(2 * x))


def test_pairs_stay_on_their_devices():
    count, width = 512, 8
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        x = jax.ShapeDtypeStruct((count, width), "float32", sharding=rows)
        compiled = jax.jit(jax.value_and_grad(bhep), out_shardings=(whole, rows)).lower(x).compile()
    # The samples and their gradient, and a few vectors over the batch; never the pairs.
    sizes = collective_sizes(compiled.as_text())
    assert max(sizes) == count * width
    assert sum(sizes) < 2 * count * width + 4 * count
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 4 * count**2 / 8


def test_types_and_bad_arguments():
    x = samples(8, 3)
    with jax.enable_x64(True):
        wide, _ = step(jnp.asarray(x, "float64"))
        assert wide.dtype == "float64"
        np.testing.assert_allclose(wide, reference_bhep(x.astype("float64"), 1.0), rtol=1e-12)
    value, grad = step(jnp.asarray(x, jnp.bfloat16))
    assert value.dtype == "float32" and grad.dtype == "bfloat16"
    for f in (bhep, henze_zirkler):
        with pytest.raises(ValueError, match="N, D"):
            f(x[0])
        with pytest.raises(ValueError, match="no numbers"):
            f(x[:0])
        with pytest.raises(ValueError, match="float embeddings"):
            f(x.astype("int32"))
    with pytest.raises(ValueError, match="beta"):
        bhep(x, beta=0.0)
