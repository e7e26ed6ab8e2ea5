import numpy as np
import pytest

from jepa.nn.positions import sincos
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
