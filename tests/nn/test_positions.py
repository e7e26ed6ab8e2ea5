import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jepa.nn.positions import METHODS, sincos, sincos_1d, stretched
from jepa.nn.rotary import grid_positions


@pytest.mark.parametrize(
    ("form", "shares"),
    [
        ("sincos", (16, 8, 8)),
        ("sincos_2d", (0, 16, 16)),
        ("sincos_uniform", (12, 12, 12)),  # 36 numbers, of which 32 are kept
    ],
)
def test_each_axis_has_its_sines_then_its_cosines(form, shares):
    grid, width = (2, 3, 5), 32
    table = np.asarray(sincos(grid_positions(grid), width, form))
    rows = []
    for frame in range(2):
        for row in range(3):
            for column in range(5):
                parts = []
                for position, share in zip((frame, row, column), shares, strict=True):
                    half = share // 2
                    angles = position / 10000.0 ** (np.arange(half) / max(half, 1))
                    parts += [np.sin(angles), np.cos(angles)]
                rows.append(np.concatenate(parts)[:width])
    np.testing.assert_allclose(table, np.stack(rows), rtol=1e-5, atol=1e-6)


def test_no_two_tokens_of_a_clip_share_a_position():
    table = np.asarray(sincos(grid_positions((4, 8, 8)), 64))
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert distances[~np.eye(len(table), dtype=bool)].min() > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(4, 3), (7, 5), (2, 13)])
def test_tables_are_stretched_as_torch_does(method, grid):
    mode, _, antialias = method.partition("_")
    table = np.random.default_rng(0).normal(size=(7 * 5, 3)).astype(np.float32)
    pixels = torch.tensor(table).reshape(1, 7, 5, 3).permute(0, 3, 1, 2)
    mode = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    expected = torch.nn.functional.interpolate(pixels, grid, mode=mode, antialias=bool(antialias))
    expected = expected.permute(0, 2, 3, 1).reshape(-1, 3)
    found = stretched(jnp.asarray(table), grid, (7, 5), method)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_places_on_one_axis_have_sines_then_cosines():
    table = np.asarray(sincos_1d(jnp.arange(5.0), 8))
    angles = np.arange(5)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(
        table, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-6
    )
