import pickle
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_checks import check_ids, mirror_scores, painted

from jepa.errors import UserError
from jepa.masks import blocks
from jepa.masks.config import from_config
from jepa.masks.multiblock import Multiblock
from jepa.masks.picture import picture

sides = st.integers(4, 24)
seeds = st.integers(0, 2**40)
distributions = st.sampled_from(blocks.DISTRIBUTIONS)


def check(masks, seed, indices):
    frames, height, width = masks.grid
    tokens = frames * height * width
    sample, spec = masks.sample(seed, indices), masks.spec(len(indices))
    assert set(sample) == set(spec) == {"context", "targets"}
    for name, ids in sample.items():
        check_ids(ids, tokens, spec[name][0])
    context = painted(sample["context"], tokens)
    targets = painted(sample["targets"], tokens)
    assert not (context[:, None] & targets).any()
    for mask in (context, targets):
        planes = mask.reshape(*mask.shape[:-1], frames, -1)
        assert (planes == planes[..., :1, :]).all()
    return sample


def published_areas(height, width, scale, aspect, count=4000):
    """Areas of targets as I-JEPA's code draws them: one number for scale and aspect."""
    r = np.random.default_rng(3).random(count)
    area = (height * width * (scale[0] + r * (scale[1] - scale[0]))).astype(int)
    ratio = aspect[0] + r * (aspect[1] - aspect[0])
    return np.round(np.sqrt(area * ratio)) * np.round(np.sqrt(area / ratio))


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 3), sides, sides, seeds, st.integers(0, 2**50), distributions)
def test_every_grid_from_4x4_holds_the_published_masks(
    frames, height, width, seed, first, distribution
):
    masks = Multiblock((frames, height, width), distribution=distribution)
    check(masks, seed, first + np.arange(3))


@settings(max_examples=1000, deadline=None)
@given(
    sides,
    sides,
    st.integers(1, 6),
    st.tuples(st.floats(0.02, 0.4), st.floats(0.02, 0.4)),
    st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)),
    st.floats(0.5, 1),
    distributions,
    seeds,
)
def test_counts_are_exact_or_the_options_refused(
    height, width, count, scale, aspect, context, distribution, seed
):
    options = {
        "targets": count,
        "target_scale": tuple(sorted(scale)),
        "target_aspect": tuple(sorted(aspect)),
        "context_scale": (context, 1.0),
        "distribution": distribution,
    }
    try:
        masks = Multiblock((1, height, width), **options)
    except UserError as error:
        assert "masks.target" in str(error)
        # Refused only where, give or take the rounding of sides, targets may cover the context,
        # which as published is a square that keeps off the last row and column.
        if distribution == "published":
            block = min(context * height * width, (min(height, width) - 1) ** 2)
            assert max(scale) * height * width > 0.4 * block
        else:
            covered = count * max(scale)
            assert covered > 0.4 or count > 0.4 * height * width
        return
    check(masks, seed, np.arange(3))


@pytest.mark.parametrize("grid", [(1, 1, 9), (1, 2, 7), (2, 3, 3), (1, 30, 4)])
def test_narrow_grids(grid):
    check(Multiblock(grid, targets=2), 0, np.arange(50))


@settings(max_examples=200, deadline=None)
@given(sides, sides, seeds)
def test_a_target_is_a_rectangle_with_one_line_partly_filled(height, width, seed):
    masks = Multiblock((1, height, width))
    targets = painted(masks.sample(seed, np.arange(4))["targets"], height * width)
    for mask in targets.reshape(-1, height, width):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        missing = box.size - box.sum()
        assert missing < max(box.shape)
        # What is missing lies in one outer line.
        outer = [box[0], box[-1], box[:, 0], box[:, -1]]
        assert missing == 0 or missing in [line.size - line.sum() for line in outer]


def test_aspects_and_places_are_the_ones_asked_for():
    masks = Multiblock((1, 40, 40), targets=1, target_scale=(0.1, 0.1), target_aspect=(0.5, 0.5))
    targets = painted(masks.sample(0, np.arange(400))["targets"][:, 0], 1600).reshape(-1, 40, 40)
    heights = targets.any(axis=2).sum(axis=1)
    widths = targets.any(axis=1).sum(axis=1)
    assert np.abs(heights / np.sqrt(160 * 0.5) - 1).max() < 0.15
    assert np.abs(widths / np.sqrt(160 / 0.5) - 1).max() < 0.15
    # All places are equally likely: the first rows against the uniform distribution.
    tops = targets.any(axis=2).argmax(axis=1)
    room = 40 - heights.min() + 1
    expected = 400 / room
    assert ((np.bincount(tops, minlength=room) - expected) ** 2 / expected).sum() < 2 * room


def test_unbiased_masks_are_symmetric_and_reach_every_row_and_column():
    masks = Multiblock((1, 7, 10))
    sample = masks.sample(5, np.arange(6000))
    context = painted(sample["context"], 70).reshape(-1, 7, 10)
    targets = painted(sample["targets"], 70).reshape(-1, 7, 10)
    assert context.mean(axis=0).min() > 0.02
    assert targets.mean(axis=0).min() > 0.01
    # 280 scores: beyond 4.5 once in five hundred such tests.
    assert mirror_scores(context).max() < 4.5
    assert mirror_scores(targets).max() < 4.5


def test_published_masks_leave_out_the_last_row_and_column_and_the_bottom():
    masks = Multiblock((1, 14, 14), distribution="published")
    sample = masks.sample(5, np.arange(2000))
    context = painted(sample["context"], 196).reshape(-1, 14, 14)
    targets = painted(sample["targets"], 196).reshape(-1, 14, 14)
    for mask in (context, targets):
        assert not mask[:, -1].any() and not mask[:, :, -1].any()
        assert mask.reshape(-1, 196).any(axis=0).sum() > 150
    assert mirror_scores(context)[0].max() > 20
    # Cut from below, a target is full rows and then the beginning of one; all have one size.
    first = targets[:4]
    for mask in first:
        widths = mask.sum(axis=1)
        widths = widths[widths > 0]
        assert (widths[:-1] == widths[0]).all() and widths[-1] <= widths[0]


@pytest.mark.parametrize("height,width", [(14, 14), (16, 16), (28, 28), (24, 18)])
def test_target_counts_are_of_the_published_areas(height, width):
    areas = published_areas(height, width, (0.15, 0.2), (0.75, 1.5))
    unbiased = Multiblock((1, height, width)).counts["targets"]
    published = Multiblock((1, height, width), distribution="published").counts["targets"]
    assert abs(unbiased - areas.mean()) < 0.03 * areas.mean()
    assert published == areas.min()


def test_context_counts_are_the_smallest_of_a_published_batch():
    rng = np.random.default_rng(0)
    smallest = []
    for area in published_areas(14, 14, (0.15, 0.2), (0.75, 1.5), 40):
        side = {30.0: (5, 6), 35.0: (7, 5), 36.0: (6, 6), 40.0: (8, 5)}[area]
        free = []
        for _ in range(128):
            mask = np.zeros((14, 14), bool)
            mask[:13, :13] = True
            for _ in range(4):
                top, left = (rng.integers(0, 14 - n) for n in side)
                mask[top : top + side[0], left : left + side[1]] = False
            free.append(mask.sum())
        smallest.append(min(free))
    count = Multiblock((1, 14, 14), distribution="published").counts["context"]
    assert abs(count - np.mean(smallest)) < 3


@pytest.mark.parametrize("distribution", blocks.DISTRIBUTIONS)
def test_a_sample_depends_on_its_seed_and_index_alone(distribution):
    masks = pickle.loads(pickle.dumps(Multiblock((1, 10, 12), distribution=distribution)))
    together = masks.sample(3, np.arange(100, 200))
    for alone in (100, 150, 199):
        for name, ids in masks.sample(3, np.array([alone])).items():
            np.testing.assert_array_equal(ids[0], together[name][alone - 100])
    # Another epoch or another seed: other masks, for every record.
    for other in (masks.sample(3, np.arange(1100, 1200)), masks.sample(4, np.arange(100, 200))):
        same = (other["targets"] == together["targets"]).all(axis=(1, 2))
        assert same.mean() < 0.02


def test_published_masks_end_their_search(monkeypatch):
    monkeypatch.setattr(blocks, "ATTEMPTS", 0)
    masks = Multiblock((1, 9, 9), distribution="published")
    targets = check(masks, 0, np.arange(200))["targets"]
    assert (targets == targets[:, :1]).all()


def test_context_tokens():
    masks = Multiblock((2, 14, 14), context_tokens=64)
    assert check(masks, 0, np.arange(20))["context"].shape == (20, 128)


@pytest.mark.parametrize(
    "options,grid,words",
    [
        ({"targets": 0}, (1, 8, 8), ["masks.targets is 0", "1 to"]),
        ({"targets": 8}, (1, 14, 14), ["masks.targets is 8", "14x14", "lower"]),
        ({"target_scale": 0.0}, (1, 8, 8), ["masks.target_scale", "above 0"]),
        ({"target_scale": (0.2, 0.1)}, (1, 8, 8), ["masks.target_scale", "(low, high)"]),
        ({"context_tokens": 99}, (1, 14, 14), ["masks.context_tokens is 99", "1 to 64"]),
        ({"minimum": 0.5}, (1, 14, 14), ["masks.minimum", "98"]),
        ({"distribution": "meta"}, (1, 8, 8), ["masks.distribution", "published"]),
        ({"distribution": "published"}, (1, 1, 9), ["masks.distribution", "unbiased"]),
        ({"distribution": "published"}, (1, 2, 2), ["masks.targets", "2x2"]),
        ({"target_scales": 0.1}, (1, 8, 8), ["masks.target_scales", "'target_scale'"]),
        ({}, (1, 0, 8), ["masks.grid"]),
        ({"sampler": "blocks"}, (1, 8, 8), ["masks.sampler", "multiblock, tubes"]),
    ],
)
def test_mistakes_are_named(options, grid, words):
    with pytest.raises(UserError) as caught:
        from_config({"sampler": "multiblock", **options}, grid)
    for word in words:
        assert word in str(caught.value)


def test_a_config_makes_the_sampler():
    config = ml_collections.ConfigDict(
        {"sampler": "multiblock", "targets": 3, "target_scale": 0.1, "context_scale": (0.8, 0.9)}
    )
    assert from_config(config, (1, 9, 9)) == Multiblock(
        (1, 9, 9), targets=3, target_scale=(0.1, 0.1), context_scale=(0.8, 0.9)
    )


def test_a_picture_shows_what_is_seen_and_predicted():
    drawn = picture(np.array([0]), np.array([[1], [3]]), (1, 2, 2), cell=4)
    assert drawn.shape == (8, 8, 3) and drawn.dtype == np.uint8
    corners = [tuple(drawn[r, c].tolist()) for r in (0, 4) for c in (0, 4)]
    assert len(set(corners)) == 4
    assert sum(corners[0]) > sum(corners[2])


def test_workers_that_sample_need_no_jax():
    code = "import sys, jepa.masks.config, jepa.masks.distance; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
