"""Crops and mirrors are drawn once for all frames of a clip."""

import numpy as np
import pytest
from loading_helpers import config, record, write

from jepa.data.loader import make_train_loader


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i) for i in range(6)]
    return write(tmp_path_factory.mktemp("data") / "set", {"train": records})


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_all_frames_of_a_clip_show_the_same_part(data, cache):
    """The green of these clips rises by 50 from left to right, the blue from top to bottom."""
    keys = {"crop": "random_resized", "crop_scale": (0.2, 0.8), "flip": True, "streams": "video"}
    with make_train_loader(config(data, **keys, cache=cache), global_batch=24, seed=0) as loader:
        video = next(loader)["video"].astype(float)
    across, down = video[..., 1].mean(axis=2), video[..., 2].mean(axis=3)  # [B, T, size]
    # Half of a frame less the other half: half the share of the whole that is shown, times 50.
    wide, high = (x[..., 16:].mean(-1) - x[..., :16].mean(-1) for x in (across, down))
    shares = np.stack([wide, high, across.mean(-1) - across[:, :1].mean(-1)], axis=-1)
    np.testing.assert_allclose(shares, np.broadcast_to(shares[:, :1], shares.shape), atol=3)
    assert (high > 5).all() and np.ptp(high.mean(1)) > 6  # not mirrored, and of several sizes
    assert (wide.mean(1) < -5).any() and (wide.mean(1) > 5).any()  # mirrored, some of them
