import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from jepa.masks.distance import distance_to_masked
from jepa.masks.tubes import Kind, Tubes


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 13, 9), (3, 8, 5), (6, 4, 4)])
@pytest.mark.parametrize("lasting", [(1.0, 1.0), (0.2, 0.5)])
@pytest.mark.parametrize("distribution", ["unbiased", "published"])
def test_distances_are_exact(grid, lasting, distribution):
    kind = Kind("one", 2, (0.15, 0.15), temporal_scale=lasting)
    pair = Tubes(grid, (kind,), distribution=distribution).sample(0, np.arange(20))["one"]
    found = distance_to_masked(pair["context"], pair["target"], grid)
    assert found.dtype == np.float32 and found.shape == pair["context"].shape
    for context, target, distances in zip(pair["context"], pair["target"], found, strict=True):
        free = np.ones(np.prod(grid), bool)
        free[target] = False
        expected = distance_transform_edt(free.reshape(grid)).reshape(-1)[context]
        np.testing.assert_allclose(distances, expected, rtol=1e-6)
