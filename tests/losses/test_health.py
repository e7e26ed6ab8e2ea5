import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.losses import health as healths
from jepa.parallel.mesh import batch_sharding, make_mesh

embedding_health = jax.jit(healths.embedding_health)


def test_isotropic_embeddings():
    x = 2.0 * jax.random.normal(jax.random.key(0), (4096, 16))
    health = embedding_health(x)
    np.testing.assert_allclose(health["std"], 2.0, rtol=0.02)
    np.testing.assert_allclose(health["mean_cosine"], 0.0, atol=0.01)
    np.testing.assert_allclose(health["effective_rank"], 16.0, rtol=0.01)


def test_equal_variance_in_some_directions_only():
    # Corners of a cube in 3 of 10 dimensions: exactly three equal eigenvalues.
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(8, 3)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((10, 10)))[0][:3]
    health = embedding_health((corners @ turn + 5.0).astype("float32"))
    np.testing.assert_allclose(health["effective_rank"], 3.0, rtol=1e-3)


def test_against_pairs_one_by_one():
    x = np.random.default_rng(0).standard_normal((7, 4)) + 1.0
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(7) for j in range(7) if i != j]
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    share = values / values.sum()
    health = embedding_health(x.astype("float32"))
    np.testing.assert_allclose(health["mean_cosine"], np.mean(pairs), rtol=1e-5)
    np.testing.assert_allclose(health["std"], x.std(0).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        health["effective_rank"], np.exp(-np.sum(share * np.log(share))), rtol=1e-4
    )


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_collapse(value):
    health = embedding_health(jnp.full((8, 4), value))
    assert health["std"] == 0 and health["effective_rank"] == 1
    np.testing.assert_allclose(health["mean_cosine"], 1.0 if value else -1 / 7, rtol=1e-6)


def test_on_a_mesh():
    x = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
    wanted = embedding_health(x)
    cut = jax.device_put(x, batch_sharding(make_mesh({"data": 4, "fsdp": 2})))
    got = embedding_health(cut)
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5)
    with pytest.raises(ValueError, match="N >= 2"):
        embedding_health(x[:1])
