import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.nn import rotary


def vectors(n, head_dim, seed=0):
    x = np.random.default_rng(seed).normal(size=(1, 2, n, head_dim))
    return jnp.asarray(x, jnp.float32)


def by_hand(x, position, head_dim, tiled):
    """V-JEPA 2's formula, a channel at a time."""
    part = 2 * ((head_dim // 3) // 2)
    k = part // 2
    y = np.array(x, np.float64)
    for axis in range(3):
        for j in range(part):
            channel = axis * part + j
            angle = position[axis] * 10000.0 ** -((j % k if tiled else j // 2) / k)
            partner = -x[channel + 1] if j % 2 == 0 else x[channel - 1]
            y[channel] = x[channel] * np.cos(angle) + partner * np.sin(angle)
    return y


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("head_dim", [6, 20, 32])
def test_video_form_a_channel_at_a_time(tiled, head_dim):
    grid = (2, 3, 5)
    positions = rotary.grid_positions(grid)
    x = vectors(30, head_dim)
    y = rotary.rotate(x, rotary.rotary_3d(positions, head_dim, tiled=tiled))
    for token in (0, 7, 29):
        where = (token // 15, token % 15 // 5, token % 5)
        np.testing.assert_array_equal(positions[:, token], where)
        expected = by_hand(np.asarray(x[0, 1, token]), where, head_dim, tiled)
        np.testing.assert_allclose(y[0, 1, token], expected, atol=1e-5)


def products(positions, head_dim, tiled, seed=0):
    q, k = vectors(1, head_dim, seed), vectors(1, head_dim, seed + 1)
    shape = (1, 2, positions.shape[1], head_dim)
    tables = rotary.rotary_3d(positions, head_dim, tiled=tiled)
    q, k = (rotary.rotate(jnp.broadcast_to(x, shape), tables) for x in (q, k))
    return jnp.einsum("bhnd,bhmd->nm", q, k)


def test_rotation_depends_on_differences_only_and_the_tiled_form_does_not():
    positions = rotary.grid_positions((2, 3, 4))
    moved = positions + jnp.array([[3.0], [1.5], [2.0]])
    for tiled in (False, True):
        difference = jnp.abs(products(positions, 32, tiled) - products(moved, 32, tiled)).max()
        assert (difference > 0.1) if tiled else (difference < 1e-3)


def test_what_is_left_of_a_head_is_not_turned():
    x = vectors(8, 20)
    tables = rotary.rotary_3d(rotary.grid_positions((2, 2, 2)), 20, tiled=True)
    np.testing.assert_array_equal(rotary.rotate(x, tables)[..., 18:], x[..., 18:])


def test_positions_stretch_to_the_pretraining_grid():
    positions = rotary.grid_positions((2, 4, 1), pretrain_grid=16)
    np.testing.assert_allclose(positions[0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(positions[1, :4], [0, 5, 10, 15])
    # A single row or column, where the published formula divides by zero.
    np.testing.assert_array_equal(positions[2], 0)


def test_gathered_positions_travel_with_their_tokens():
    positions = rotary.grid_positions((2, 2, 3))
    ids = jnp.array([[0, 7, 11], [5, 2, 1]])
    x = jnp.broadcast_to(vectors(12, 8), (2, 2, 12, 8))
    whole = rotary.rotate(x, rotary.rotary_3d(positions, 8, tiled=True))
    picked = jnp.take_along_axis(x, ids[:, None, :, None], axis=2)
    tables = rotary.rotary_3d(rotary.gather(positions, ids), 8, tiled=True)
    expected = jnp.take_along_axis(whole, ids[:, None, :, None], axis=2)
    np.testing.assert_allclose(rotary.rotate(picked, tables), expected, atol=1e-6)


def test_text_form_depends_on_differences_only_and_keeps_lengths():
    x = vectors(6, 10)
    near = rotary.rotate(x, rotary.rotary_1d(jnp.arange(6.0), 10))
    far = rotary.rotate(x, rotary.rotary_1d(jnp.arange(6.0) + 9, 10))
    scores = jnp.einsum("bhnd,bhmd->bhnm", near, near)
    np.testing.assert_allclose(scores, jnp.einsum("bhnd,bhmd->bhnm", far, far), atol=1e-4)
    np.testing.assert_allclose(
        jnp.linalg.norm(near, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_allclose(near[:, :, 0], x[:, :, 0], atol=1e-6)


def test_angles_are_float32_for_bfloat16_and_float64_when_asked():
    tables = rotary.rotary_3d(rotary.grid_positions((1, 2, 2)), 8, tiled=False)
    assert tables.cos.dtype == jnp.float32
    assert rotary.rotate(vectors(4, 8).astype(jnp.bfloat16), tables).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        positions = rotary.grid_positions((1, 2, 2), dtype=jnp.float64)
        assert rotary.rotary_3d(positions, 8, tiled=False).cos.dtype == jnp.float64


@pytest.mark.parametrize("head_dim", [4, 9])
def test_a_head_that_cannot_be_turned_is_refused(head_dim):
    with pytest.raises(UserError, match=f"head dimension is {head_dim}"):
        rotary.rotary_3d(rotary.grid_positions((1, 1, 1)), head_dim, tiled=True)
    with pytest.raises(UserError, match="head dimension is 9"):
        rotary.rotary_1d(jnp.arange(2), 9)
