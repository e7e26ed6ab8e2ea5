import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.losses.regression import regression
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated


def arrays(shape=(4, 3, 5), dtype="float32"):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape).astype(dtype) for _ in range(2))


def distances(p, t, kind):
    p, t = np.float64(p), np.float64(t)
    if kind == "l1":
        return abs(p - t).mean(-1)
    if kind == "smooth_l1":
        d = abs(p - t)
        return np.where(d < 1, d**2 / 2, d - 0.5).mean(-1)
    if kind == "l2":
        return ((p - t) ** 2).mean(-1)
    lengths = np.linalg.norm(p, axis=-1) * np.linalg.norm(t, axis=-1)
    return 1 - (p * t).sum(-1) / lengths


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "l2", "cosine"])
def test_values_and_weights(kind):
    p, t = arrays()
    each = distances(p, t, kind)
    np.testing.assert_allclose(regression(p, t, kind), each.mean(), rtol=1e-5)
    np.testing.assert_allclose(regression(p[:, 0], t[:, 0], kind), each[:, 0].mean(), rtol=1e-5)
    weights = np.random.default_rng(1).random((4, 3)).astype("float32")
    wanted = np.average(each, weights=weights)
    np.testing.assert_allclose(regression(p, t, kind, weights=weights), wanted, rtol=1e-5)
    mask = np.array([True, False, True, True])
    got = regression(p, t, kind, weights=mask)
    np.testing.assert_allclose(got, each[mask].mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "l2", "cosine"])
def test_gradient_is_finite_and_masked_vectors_get_none(kind):
    p, t = arrays()
    mask = np.zeros((4, 3), bool)
    grad = jax.grad(lambda p: regression(p, t, kind, weights=mask))(p)
    assert regression(p, t, kind, weights=mask) == 0 and not grad.any()
    mask[1, 2] = True
    grad = jax.grad(lambda p: regression(p, t, kind, weights=mask))(p)
    assert grad[1, 2].any() and np.isfinite(grad).all()
    assert not np.asarray(grad)[~mask].any()


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "l2", "cosine"])
def test_weighted_mean_is_global_on_a_mesh(kind):
    p, t = arrays((8, 3, 5), "float64")
    # Very uneven weights: a mean of per-device means would be far off.
    weights = np.zeros((8, 3))
    weights[0], weights[5, 1] = 7.0, 1.0

    def step(p, t, w):
        return jax.value_and_grad(lambda p: regression(p, t, kind, weights=w))(p)

    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.enable_x64(True):
        wanted, wanted_grad = step(p, t, weights)
        rows = batch_sharding(mesh)
        args = jax.device_put((p, t, weights), rows)
        value, grad = jax.jit(step, out_shardings=(replicated(mesh), rows))(*args)
    np.testing.assert_allclose(value, np.average(distances(p, t, kind), weights=weights))
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(grad, wanted_grad, atol=1e-14)


def test_bfloat16_is_widened():
    p, t = (jnp.asarray(x, jnp.bfloat16) for x in arrays())
    value = regression(p, t, "l2")
    assert value.dtype == jnp.float32
    wanted = distances(p.astype("float32"), t.astype("float32"), "l2").mean()
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_bad_arguments():
    p, t = arrays()
    with pytest.raises(ValueError, match="huber"):
        regression(p, t, "huber")
    with pytest.raises(ValueError, match="onto"):
        regression(p, t[:2], "l1")
    with pytest.raises(ValueError, match="weights"):
        regression(p, t, "l1", weights=np.ones(3))
