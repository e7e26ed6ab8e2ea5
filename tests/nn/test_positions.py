import numpy as np

from jepa.nn.positions import sincos_3d
from jepa.nn.rotary import grid_positions


def test_each_axis_has_its_sines_then_its_cosines():
    grid, width = (2, 3, 5), 32
    table = np.asarray(sincos_3d(grid_positions(grid), width))
    rows = []
    for frame in range(2):
        for row in range(3):
            for column in range(5):
                parts = []
                for position, share in ((frame, 16), (row, 8), (column, 8)):
                    half = share // 2
                    angles = position / 10000.0 ** (np.arange(half) / half)
                    parts += [np.sin(angles), np.cos(angles)]
                rows.append(np.concatenate(parts))
    np.testing.assert_allclose(table, np.stack(rows), rtol=1e-5, atol=1e-6)


def test_no_two_tokens_of_a_clip_share_a_position():
    table = np.asarray(sincos_3d(grid_positions((4, 8, 8)), 64))
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert distances[~np.eye(len(table), dtype=bool)].min() > 0.1
