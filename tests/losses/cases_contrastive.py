"""Cases of `loss_cases` for InfoNCE and the sigmoid loss: all logits at once, in NumPy."""

from functools import partial

import numpy as np
from loss_cases import ROWS, Case, embeddings

from jepa.losses.infonce import info_nce
from jepa.losses.sigmoid import sigmoid

HASH = np.array([5, 7, 5, 1, 2, 7, 5, 3, 9, 9, 4, 6, 5, 8, 0, 7], np.int32)


def inputs(hashes=HASH, **scalars):
    p, t = embeddings()
    p[3] *= 40.0  # lengths must not matter
    arrays = {"predictions": p, "targets": t}
    arrays |= {name: np.float64(x) for name, x in scalars.items()}
    return arrays if hashes is None else {**arrays, "target_hash": hashes}


def cosines(p, t):
    """`[B, B]`, and 0 where a row is zero."""
    p, t = (x / np.sqrt(np.where(s == 0, 1, s)) for x in (p, t) for s in [(x**2).sum(1)[:, None]])
    return p @ t.T


def log_sum(logits, mask):
    """`[B]` logarithm of each row's sum of exponentials where the mask is true; -inf for none."""
    top = np.where(mask, logits.real, -np.inf).max(1)
    top = np.where(np.isfinite(top), top, 0.0)[:, None]
    total = np.where(mask, np.exp(np.where(mask, logits - top, 0)), 0).sum(1)
    some = mask.any(1)
    return np.where(some, np.log(np.where(some, total, 1)) + top[:, 0], -np.inf)


def equal_pairs(size, hashes, equal_targets):
    if hashes is None or equal_targets == "negatives":
        return np.eye(size, dtype=bool)
    return hashes[:, None] == hashes


def info_nce_reference(arrays, equal_targets="masked", hardness=0.0, label_smoothing=0.0):
    s = cosines(arrays["predictions"], arrays["targets"]) * arrays["inverse_temperature"]
    size = len(s)
    own = np.eye(size, dtype=bool)
    same = equal_pairs(size, arrays.get("target_hash"), equal_targets)
    if equal_targets == "positives":
        positive, allowed = same, np.ones_like(same)
    else:
        positive, allowed = own, own | ~same
    total = 0.0
    for logits in (s, s.T):
        if hardness:
            for i, row in enumerate(logits):
                others = row[~same[i]]
                weights = np.exp(hardness * (others - row[i]))
                if len(others):
                    weights = weights / weights.mean()
                    total = total + np.log(1 + (weights * np.exp(others - row[i])).sum())
            continue
        lse = log_sum(logits, allowed)
        wanted = (1 - label_smoothing) * positive / positive.sum(1)[:, None]
        wanted = wanted + label_smoothing * allowed / allowed.sum(1)[:, None]
        total = total + (lse - (wanted * logits).sum(1)).sum()
    return total / (2 * size)


def sigmoid_reference(arrays, equal_targets="masked"):
    s = cosines(arrays["predictions"], arrays["targets"]) * arrays["inverse_temperature"]
    s = s + arrays["bias"]
    own = np.eye(len(s), dtype=bool)
    same = equal_pairs(len(s), arrays.get("target_hash"), equal_targets)
    positive = same if equal_targets == "positives" else own
    costs = np.log1p(np.exp(np.where(positive, -s, s)))
    return np.where(same & ~positive, 0, costs).sum() / len(s)


def case(name, *, loss, reference, arrays, transport, tile, bfloat16=False, **options):
    return Case(
        name=name,
        loss=lambda x: loss(**x, **options, transport=transport, tile=tile)[0],
        reference=partial(reference, **options),
        inputs=arrays,
        bfloat16=("predictions", "targets") if bfloat16 else (),
    )


nce = partial(case, loss=info_nce, reference=info_nce_reference)
siglip = partial(case, loss=sigmoid, reference=sigmoid_reference)
hashed = partial(inputs, inverse_temperature=9.0)
plain = partial(hashed, None)
biased = partial(inputs, inverse_temperature=4.0, bias=-2.0)
assert len(HASH) == ROWS

# Tiles of 4 divide the rows of 1, 2 and 4 devices; those of 3 overlap; one of 64 is all.
CASES = [
    nce("info_nce_ring", arrays=plain, transport="ring", tile=3, bfloat16=True),
    nce(
        "info_nce_masked_smoothed",
        arrays=hashed,
        transport="all_gather",
        tile=4,
        bfloat16=True,
        label_smoothing=0.1,
    ),
    nce(
        "info_nce_positives_smoothed_ring",
        arrays=hashed,
        transport="ring",
        tile=64,
        bfloat16=True,
        equal_targets="positives",
        label_smoothing=0.2,
    ),
    nce(
        "info_nce_hard_ring",
        arrays=hashed,
        transport="ring",
        tile=3,
        bfloat16=True,
        hardness=0.5,
    ),
    siglip("sigmoid_masked_ring", arrays=biased, transport="ring", tile=4, bfloat16=True),
    siglip(
        "sigmoid_positives",
        arrays=biased,
        transport="all_gather",
        tile=3,
        bfloat16=True,
        equal_targets="positives",
    ),
]
