"""What is true of every sample of every sampler, and statistics of where masks lie."""

import numpy as np


def check_ids(ids, tokens, shape):
    """Sorted, unique and in range along the last axis."""
    assert ids.dtype == np.int32 and ids.shape == shape
    assert ids.min() >= 0 and ids.max() < tokens
    assert (np.diff(ids, axis=-1) > 0).all()


def painted(ids, tokens):
    """Bool [..., N] of ids [..., K]."""
    mask = np.zeros((*ids.shape[:-1], tokens), bool)
    np.put_along_axis(mask, ids, True, axis=-1)
    return mask


def mirror_scores(mask):
    """|z| of the difference between each cell and its mirror image, both ways; bool [n, H, W]."""
    scores = []
    for axis in (1, 2):
        difference = mask.astype(float) - np.flip(mask, axis).astype(float)
        error = difference.std(axis=0) / np.sqrt(len(mask))
        scores.append(np.abs(difference.mean(axis=0)) / np.maximum(error, 1e-9))
    return np.stack(scores)
