import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiled_text import collective_sizes

from jepa.losses.barlow_twins import barlow_twins
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated


def step(first, second):
    return jax.value_and_grad(barlow_twins, (0, 1), has_aux=True)(first, second)


jitted = jax.jit(step)


def pair(n=12, d=5):
    rng = np.random.default_rng(0)
    p = rng.standard_normal((n, d)) @ (0.6 * np.eye(d) + 0.1) + 0.5
    return p.astype("float32"), (p + 0.4 * rng.standard_normal((n, d))).astype("float32")


def torch_barlow_twins(first, second):
    """With torch's batch normalisation, as published, in torch float64."""
    a, b = (torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (first, second))
    norm = torch.nn.BatchNorm1d(a.shape[1], affine=False).double()
    matrix = norm(a).T @ norm(b) / len(a)
    diagonal = (1 - matrix.diag()).pow(2).sum()
    others = (matrix - matrix.diag().diag()).pow(2).sum()
    (diagonal + 5e-3 * others).backward()
    terms = {"diagonal": diagonal, "off_diagonal": others, "correlation": matrix.diag().mean()}
    return {k: v.item() for k, v in terms.items()}, (a.grad.numpy(), b.grad.numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
def test_parity_with_torch(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        (value, metrics), grads = jitted(*(jnp.asarray(x, dtype) for x in pair()))
        assert value.dtype == dtype and all(m.dtype == dtype for m in metrics.values())
    terms, wanted_grads = torch_barlow_twins(*pair())
    wanted = terms["diagonal"] + 5e-3 * terms["off_diagonal"]
    np.testing.assert_allclose(value, wanted, rtol=tolerance)
    assert metrics.keys() == terms.keys()
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=tolerance)
    for got, grad in zip(grads, wanted_grads, strict=True):
        np.testing.assert_allclose(got, grad, atol=tolerance * abs(grad).max())


def test_equal_uncorrelated_views_cost_nothing():
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(8, 3).astype("float32")
    score = jax.jit(barlow_twins)
    # Neither scale nor location counts.
    value, metrics = score(corners, 3 * corners + 1)
    np.testing.assert_allclose(value, 0, atol=1e-8)
    np.testing.assert_allclose(metrics["correlation"], 1, rtol=1e-4)
    # Opposite views: every correlation is -1.
    np.testing.assert_allclose(score(corners, -corners)[0], 3 * 4, rtol=1e-4)
    # One signal in all dimensions: the diagonal is right, the six others are 1.
    same = np.repeat(corners[:, :1], 3, axis=1)
    np.testing.assert_allclose(score(same, same)[0], 5e-3 * 6, rtol=1e-4)


def test_collapse():
    x = np.full((12, 5), 0.3, "float32")
    (value, metrics), grads = jitted(x, x)
    np.testing.assert_allclose(value, 5, rtol=1e-6)
    np.testing.assert_allclose(metrics["correlation"], 0, atol=1e-6)
    assert all(np.isfinite(g).all() for g in grads)
    p, t = pair()
    p[:, 2] = 7.0
    (value, _), grads = jitted(p, t)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_bfloat16_is_widened():
    p, t = (jnp.asarray(x, jnp.bfloat16) for x in pair())
    (value, _), grads = jitted(p, t)
    assert value.dtype == "float32" and all(g.dtype == "bfloat16" for g in grads)
    terms, _ = torch_barlow_twins(*(np.float64(x) for x in (p, t)))
    np.testing.assert_allclose(value, terms["diagonal"] + 5e-3 * terms["off_diagonal"], rtol=1e-5)


def test_only_moments_cross_devices():
    count, width = 1024, 24
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        x = jax.ShapeDtypeStruct((count, width), "float32", sharding=rows)
        compiled = jax.jit(
            lambda a, b: jax.value_and_grad(lambda a, b: barlow_twins(a, b)[0], (0, 1))(a, b),
            out_shardings=(whole, (rows, rows)),
        )
        sizes = collective_sizes(compiled.lower(x, x).compile().as_text())
    # Two means, two variances, the correlations; the means' cotangents.
    assert sorted(sizes) == [width] * 6 + [width**2]


def test_bad_shapes():
    p, t = pair()
    for a, b in ((p, t[:3]), (p[0], t[0]), (p[:1], t[:1])):
        with pytest.raises(ValueError, match="barlow_twins of"):
            barlow_twins(a, b)
    with pytest.raises(ValueError, match="float embeddings"):
        barlow_twins(p.astype("int32"), t)
