from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_contrastive import HASH, sigmoid_reference
from compiled_text import array_sizes
from loss_cases import embeddings, value_and_gradients

from jepa.losses.infonce import info_nce
from jepa.losses.sigmoid import sigmoid
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated

NAMES = ("predictions", "targets", "inverse_temperature", "bias")


def value_and_grads(p, t, scale, bias, hashes=None, **options):
    def loss(p, t, scale, bias):
        return sigmoid(p, t, inverse_temperature=scale, bias=bias, target_hash=hashes, **options)[0]

    return jax.value_and_grad(loss, (0, 1, 2, 3))(p, t, scale, bias)


def test_float64_on_a_mesh():
    p, t = embeddings()
    arrays = dict(zip(NAMES, (p, t, np.float64(5.0), np.float64(-3.0)), strict=True))
    wanted = value_and_gradients(sigmoid_reference, {**arrays, "target_hash": HASH}, NAMES)
    mesh = make_mesh({"data": 4}, jax.devices()[:4])
    with jax.enable_x64(True), jax.set_mesh(mesh):
        p, t = (jax.device_put(x, batch_sharding(mesh)) for x in (p, t))
        step = jax.jit(partial(value_and_grads, hashes=HASH, transport="all_gather", tile=3))
        value, grads = step(p, t, jnp.float64(5.0), jnp.float64(-3.0))
    np.testing.assert_allclose(value, wanted[0], rtol=1e-12)
    for name, grad in zip(NAMES, grads, strict=True):
        assert grad.dtype == "float64"
        np.testing.assert_allclose(grad, wanted[1][name], rtol=1e-11, atol=1e-13)


def test_value_alone_and_closed_form():
    p, t = (np.float32(x) for x in embeddings())
    alone, metrics = jax.jit(sigmoid)(p, t, inverse_temperature=6.0, bias=-4.0)
    with_gradient, _ = jax.jit(value_and_grads)(p, t, 6.0, -4.0)
    np.testing.assert_allclose(alone, with_gradient, rtol=1e-6)
    # Orthogonal and equal vectors: every negative is at the bias, every own pair 6 above it.
    eye = np.eye(5, dtype=np.float32)
    value, metrics = jax.jit(sigmoid)(eye, eye, inverse_temperature=6.0, bias=-4.0)
    np.testing.assert_allclose(value, np.log1p(np.exp(-2)) + 4 * np.log1p(np.exp(-4)), rtol=1e-6)
    assert metrics["accuracy_prediction_to_target"] == 1
    assert metrics["positive_similarity"] == 1 and metrics["negative_similarity"] == 0


@pytest.mark.parametrize("equal_targets", ["negatives", "masked", "positives"])
def test_metrics_are_those_of_info_nce(equal_targets):
    p, t = (np.float32(x) for x in embeddings())
    options = {"target_hash": HASH, "equal_targets": equal_targets, "tile": 5}
    scale = {"inverse_temperature": 6.0}
    _, got = jax.jit(partial(sigmoid, **options, bias=0.0))(p, t, **scale)
    _, wanted = jax.jit(partial(info_nce, **options))(p, t, **scale)
    assert got.keys() == wanted.keys()
    assert got == wanted


def test_large_logits_give_no_overflow():
    x = np.float32([[1, 0], [1, 0], [-1, 0]])
    value, grads = jax.jit(value_and_grads)(x, x, 1000.0, 0.0)
    # Two rows are alike: each costs 1000; the third is far from both.
    np.testing.assert_allclose(value, 2000 / 3, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_allclose(grads[3], 2 / 3, rtol=1e-6)


def test_ring_holds_nothing_larger_than_a_piece():
    size, width, devices, tile = 1024, 8, 8, 32
    mesh = make_mesh({"data": devices})
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((size, width), "float32", sharding=batch_sharding(mesh))
        scalar = jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
        step = jax.jit(partial(value_and_grads, tile=tile))
        text = step.lower(x, x, scalar, scalar).compile().as_text()
    assert "all-gather" not in text and "reduce-scatter" not in text
    assert max(array_sizes(text)) == max(size * width // devices, tile * tile)


def test_options_that_do_not_fit():
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="sigmoid needs two"):
        sigmoid(x, x[:3], inverse_temperature=1.0, bias=0.0)
    with pytest.raises(ValueError, match="bias must be a scalar"):
        sigmoid(x, x, inverse_temperature=1.0, bias=np.zeros(4))
    with pytest.raises(ValueError, match="sigmoid equal_targets"):
        sigmoid(x, x, inverse_temperature=1.0, bias=0.0, equal_targets="both")
    with pytest.raises(ValueError, match="needs a target_hash"):
        sigmoid(x, x, inverse_temperature=1.0, bias=0.0, equal_targets="positives")
    with pytest.raises(ValueError, match="no numbers"):
        sigmoid(x[:0], x[:0], inverse_temperature=1.0, bias=0.0)
