import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jepa.errors import UserError
from jepa.nn import linear, mlp, norms, pooling


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def test_layer_norm_by_its_formula():
    x = 3 + 2 * numbers(4, 10)
    variables = {"params": {"scale": numbers(10, seed=1), "bias": numbers(10, seed=2)}}
    y = norms.LayerNorm(eps=1e-6).apply(variables, x)
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    params = variables["params"]
    np.testing.assert_allclose(y, z * params["scale"] + params["bias"], atol=1e-5)
    np.testing.assert_allclose(norms.LayerNorm(affine=False).apply({}, x), z, atol=1e-5)


def test_rms_norm_by_its_formula():
    x = numbers(4, 10)
    scale = numbers(10, seed=1)
    y = norms.RMSNorm(eps=1e-5).apply({"params": {"scale": scale}}, x)
    expected = scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_norm_statistics_of_bfloat16_are_float32():
    # 1000 + small: in bfloat16 the mean itself would be off by several.
    x = jnp.asarray(1000 + 8 * np.arange(16.0)[None], jnp.bfloat16)
    y = norms.LayerNorm(affine=False, dtype="float32").apply({}, x)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(y, expected, atol=1e-4)


def test_both_forms_of_gelu():
    x = np.linspace(-4, 4, 41).astype(np.float32)
    exact = x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(linear.gelu(x, "exact"), exact, atol=1e-6)
    np.testing.assert_allclose(linear.gelu(x, "tanh"), tanh, atol=1e-6)
    with pytest.raises(UserError, match="gelu is 'relu'"):
        linear.gelu(x, "relu")


def test_swiglu_by_its_formula():
    x = numbers(3, 6)
    module = mlp.SwiGlu(8)
    variables = module.init(jax.random.key(0), x)
    gate, inward, out = (variables["params"][n]["kernel"] for n in ("gate", "in", "out"))
    hidden = x @ gate
    expected = (hidden * special.expit(hidden) * (x @ inward)) @ out
    np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-6)


def test_an_id_out_of_range_cannot_pass_unseen():
    module = linear.Embedding(5, 3)
    variables = module.init(jax.random.key(0), jnp.zeros(1, int))
    y = module.apply(variables, jnp.array([4, 5]))
    np.testing.assert_array_equal(y[0], variables["params"]["embedding"][4])
    assert np.isnan(y[1]).all()


def test_masked_mean_counts_only_what_the_mask_shows():
    tokens = numbers(3, 4, 2)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    y = pooling.masked_mean(tokens, mask)
    expected = [tokens[0, :2].mean(0), tokens[1].mean(0), np.zeros(2)]
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(pooling.masked_mean(tokens), tokens.mean(1), atol=1e-6)
    assert pooling.masked_mean(tokens.astype(jnp.bfloat16), mask).dtype == jnp.float32


def test_l2_normalise_has_finite_gradients_at_zero():
    x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(pooling.l2_normalise(x), [[0.6, 0.8], [0, 0]], atol=1e-6)
    gradient = jax.grad(lambda v: pooling.l2_normalise(v).sum())(jnp.asarray(x))
    assert np.isfinite(gradient).all()
