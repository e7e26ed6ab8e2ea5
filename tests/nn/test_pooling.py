"""Unit length: exact, and silent where there is no direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.nn.pooling import l2_normalise


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_zero_stays_zero_and_passes_no_gradient_on(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]], dtype)
        cotangent = jnp.asarray([[1.0, 2.0], [5.0, -7.0]], dtype)
        y, pull = jax.vjp(l2_normalise, x)
        (gradient,) = pull(cotangent)
    assert y.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(y[1], 0)
    np.testing.assert_array_equal(gradient[1], 0)
    # (c - (c . u) u) / |x| with u = x / |x|.
    unit = np.array([0.6, 0.8])
    expected = (np.array([1.0, 2.0]) - 2.2 * unit) / 5
    np.testing.assert_allclose(y[0], unit, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1.0, 1e9])
def test_elsewhere_it_is_what_it_was(scale):
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * np.float32(scale)
    squares = np.sum(np.square(x), -1, keepdims=True, dtype=np.float32)
    expected = x / np.sqrt(np.maximum(squares, np.float32(1e-24)))
    np.testing.assert_allclose(l2_normalise(x), expected, rtol=1e-6)
