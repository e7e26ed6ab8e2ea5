import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiled_text import collective_sizes
from jax.sharding import NamedSharding, PartitionSpec

from jepa.losses.vicreg import vicreg, vicreg_views
from jepa.parallel.mesh import BATCH_AXES, make_mesh

WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}


def step(first, second):
    return jax.value_and_grad(vicreg, (0, 1), has_aux=True)(first, second)


jitted = jax.jit(step)


def pair(n=12, d=5):
    rng = np.random.default_rng(0)
    p = rng.standard_normal((n, d)) @ (0.6 * np.eye(d) + 0.1)
    return p.astype("float32"), (p + 0.4 * rng.standard_normal((n, d))).astype("float32")


def torch_vicreg(first, second):
    """From the paper's Algorithm 1, in torch float64."""
    a, b = (torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (first, second))
    terms = {"invariance": torch.nn.functional.mse_loss(a, b), "variance": 0.0, "covariance": 0.0}
    for z in (a, b):
        spread = torch.sqrt(z.var(dim=0, unbiased=True) + 1e-4)
        terms["variance"] += torch.relu(1 - spread).mean()
        matrix = torch.cov(z.T)
        terms["covariance"] += (matrix - matrix.diag().diag()).pow(2).sum() / z.shape[1]
    loss = sum(WEIGHTS[k] * v for k, v in terms.items())
    loss.backward()
    return loss.item(), {k: v.item() for k, v in terms.items()}, (a.grad.numpy(), b.grad.numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_parity_with_torch(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        (value, metrics), grads = jitted(*(jnp.asarray(x, dtype) for x in pair()))
        assert value.dtype == dtype and all(m.dtype == dtype for m in metrics.values())
    wanted, terms, wanted_grads = torch_vicreg(*pair())
    np.testing.assert_allclose(value, wanted, rtol=tolerance)
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=tolerance)
    for got, grad in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(got, grad, atol=tolerance * abs(grad).max())


def test_many_views_are_the_mean_over_their_pairs():
    p, t = pair()
    views = np.stack([p, t, 0.5 * p - t, t + 1])
    got, metrics = jax.jit(vicreg_views)(views)
    score = jax.jit(vicreg)
    pairs = [score(views[i], views[j]) for i in range(4) for j in range(i)]
    np.testing.assert_allclose(got, np.mean([value for value, _ in pairs]), rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], np.mean([m[name] for _, m in pairs]), rtol=1e-5)


def test_perfect_views_cost_nothing():
    # Corners of a cube, scaled: uncorrelated, equal in both views, of variance above 1.
    corners = np.stack(np.meshgrid(*[[-2.0, 2.0]] * 3), -1).reshape(8, 3).astype("float32")
    (value, metrics), grads = jitted(corners, corners)
    np.testing.assert_allclose(value, 0, atol=1e-10)
    assert metrics["std"] > 2 and not any(np.abs(g).max() > 1e-6 for g in grads)


def test_collapse():
    x = np.full((12, 5), 0.3, "float32")
    (value, metrics), grads = jitted(x, x)
    # Each view misses a standard deviation of 1 by all but sqrt(1e-4).
    np.testing.assert_allclose(metrics["variance"], 2 * 0.99, rtol=1e-6)
    np.testing.assert_allclose(value, 25 * 2 * 0.99, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads)
    # One constant dimension beside others.
    p, t = pair()
    p[:, 2] = 7.0
    (value, _), grads = jitted(p, t)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_bfloat16_is_widened():
    p, t = (jnp.asarray(x, jnp.bfloat16) for x in pair())
    (value, _), grads = jitted(p, t)
    assert value.dtype == "float32" and all(g.dtype == "bfloat16" for g in grads)
    np.testing.assert_allclose(value, torch_vicreg(*(np.float64(x) for x in (p, t)))[0], rtol=1e-5)


def test_only_moments_cross_devices():
    count, width = 1024, 24
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        x = jax.ShapeDtypeStruct((count, width), "float32", sharding=rows)
        whole = NamedSharding(mesh, PartitionSpec())
        compiled = jax.jit(
            lambda a, b: jax.value_and_grad(lambda a, b: vicreg(a, b)[0], (0, 1))(a, b),
            out_shardings=(whole, (rows, rows)),
        )
        sizes = collective_sizes(compiled.lower(x, x).compile().as_text())
    # Means there and back, covariances, and the invariance.
    assert sorted(sizes) == [1] + [width] * 4 + [width**2] * 2


def test_bad_shapes():
    p, t = pair()
    with pytest.raises(ValueError, match="vicreg of"):
        vicreg(p, t[:3])
    with pytest.raises(ValueError, match="vicreg of"):
        vicreg(p[0], t[0])
    with pytest.raises(ValueError, match="two samples"):
        vicreg(p[:1], t[:1])
    with pytest.raises(ValueError, match="two views"):
        vicreg_views(p[None])
    for f, x in ((lambda x: vicreg(x, x), p), (vicreg_views, np.stack([p, t]))):
        with pytest.raises(ValueError, match="float embeddings"):
            f(x.astype("int32"))
