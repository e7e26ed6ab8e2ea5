"""Sine and cosine against NumPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.losses.trigonometry import sine_cosine


@pytest.mark.parametrize(("end", "tolerance"), [(4, 2e-7), (100, 2e-7), (800, 2e-7), (3e5, 0.05)])
def test_sine_and_cosine_of_long_arguments(end, tolerance):
    x = np.random.default_rng(0).uniform(-end, end, 200_000).astype(np.float32)
    x[:3] = 0, end, -end
    for function in (sine_cosine, jax.jit(sine_cosine)):
        sine, cosine = function(x)
        assert np.abs(sine - np.sin(x.astype(np.float64))).max() <= tolerance
        assert np.abs(cosine - np.cos(x.astype(np.float64))).max() <= tolerance
        assert (sine[0], cosine[0]) == (0, 1)


def test_derivatives_are_cosines_and_sines():
    x = np.random.default_rng(0).uniform(-100, 100, 10_000).astype(np.float32)
    exact = x.astype(np.float64)
    for which, derivatives in ((0, (np.cos, lambda a: -np.sin(a))), (1, (lambda a: -np.sin(a),))):
        function = lambda a, which=which: sine_cosine(a)[which]  # noqa: E731
        for wanted in derivatives:
            function = jax.grad(function)
            found = jax.jit(jax.vmap(function))(x)
            np.testing.assert_allclose(found, wanted(exact), atol=2e-7)


def test_sine_and_cosine_stay_bounded_and_pass_nan_on():
    sine, cosine = sine_cosine(jnp.asarray([1e8, -1e12, 3e38, jnp.nan, -jnp.inf], jnp.float32))
    assert np.abs(sine[:3]).max() <= 1 + 1e-6
    assert np.abs(cosine[:3]).max() <= 1 + 1e-6
    assert np.isnan(sine[3:]).all()
    assert np.isnan(cosine[3:]).all()
