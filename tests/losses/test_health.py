import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.losses import health as healths
from jepa.parallel.mesh import batch_sharding, make_mesh

embedding_health = jax.jit(healths.embedding_health)
rankme = jax.jit(healths.rankme)
gaussianity = jax.jit(healths.gaussianity)


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


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_wide_and_tall_alike(shape):
    x = np.random.default_rng(1).standard_normal(shape) * np.linspace(0.1, 2, shape[1]) + 3
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    share = values[values > 1e-12] / values.sum()
    health = embedding_health(x.astype("float32"))
    wanted = np.exp(-np.sum(share * np.log(share)))
    np.testing.assert_allclose(health["effective_rank"], wanted, rtol=1e-4)


def test_rankme_is_of_singular_values_and_not_centred():
    x = np.random.default_rng(0).standard_normal((20, 6)) * [5, 3, 1, 1, 0.5, 0.1] + 2.0
    values = np.linalg.svd(x, compute_uv=False)
    share = values / values.sum() + 1e-7
    wanted = np.exp(-np.sum(share * np.log(share)))
    np.testing.assert_allclose(rankme(x.astype("float32")), wanted, rtol=1e-5)
    # Equal singular values: the rank itself.
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 8)))[0]
    np.testing.assert_allclose(rankme((q @ np.eye(8, 16)).astype("float32")), 8.0, rtol=1e-3)


def test_rankme_of_embeddings_that_are_all_alike():
    # In float32 the singular values of a Gram matrix would be noise of 3e-4, and this 3.
    x = np.tile(np.random.default_rng(0).standard_normal(256), (256, 1)).astype("float32")
    np.testing.assert_allclose(rankme(x), 1.0, atol=0.01)
    assert rankme(jnp.zeros((8, 4))) == 1.0


def test_gaussianity_is_blind_to_place_and_size_alone():
    key = jax.random.key(1)
    x = np.asarray(jax.random.normal(jax.random.key(0), (512, 16)))
    good = gaussianity(x, key)
    np.testing.assert_allclose(gaussianity(0.01 * x + 7.0, key), good, rtol=1e-2)
    assert 0.3 < good < 1.2
    flat = x * np.where(np.arange(16) < 2, 1.0, 0.0)
    assert gaussianity(flat, key) > 10 * good
    np.testing.assert_allclose(gaussianity(np.ones((512, 16)), key), 0.41 * 512, rtol=0.02)
