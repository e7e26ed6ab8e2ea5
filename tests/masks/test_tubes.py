import pickle

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_checks import check_ids, mirror_scores, painted

from jepa.errors import UserError
from jepa.masks import blocks
from jepa.masks.config import from_config
from jepa.masks.tubes import IMAGE, LONG, SHORT, Kind, Tubes

sides = st.integers(4, 24)
seeds = st.integers(0, 2**40)
distributions = st.sampled_from(blocks.DISTRIBUTIONS)


def check(masks, seed, indices):
    tokens = int(np.prod(masks.grid))
    sample, spec = masks.sample(seed, indices), masks.spec(len(indices))
    assert set(sample) == set(spec) == {kind.name for kind in masks.kinds}
    for name, pair in sample.items():
        for part in ("context", "target"):
            check_ids(pair[part], tokens, spec[name][part][0])
        seen, predicted = painted(pair["context"], tokens), painted(pair["target"], tokens)
        assert not (seen & predicted).any()
        if masks.distribution == "unbiased":
            assert (seen | predicted).all()
    return sample


def published_unions(height, width, kind, batches=300, batch=24):
    """Sizes [batches, batch] of unions as V-JEPA's code draws them."""
    rng = np.random.default_rng(1)
    area = int(height * width * kind.scale[0])
    sizes = []
    for _ in range(batches):
        aspect = rng.uniform(*kind.aspect)
        h = min(round(np.sqrt(area * aspect)), height)
        w = min(round(np.sqrt(area / aspect)), width)
        mask = np.zeros((batch, height, width), bool)
        for row in mask:
            for _ in range(kind.blocks):
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                row[top : top + h, left : left + w] = True
        sizes.append(mask.sum(axis=(1, 2)))
    return np.array(sizes)


@settings(max_examples=600, deadline=None)
@given(st.integers(1, 4), sides, sides, seeds, st.integers(0, 2**50), distributions)
def test_every_grid_from_4x4_holds_the_published_masks(
    frames, height, width, seed, first, distribution
):
    masks = Tubes((frames, height, width), (SHORT, LONG, IMAGE), distribution=distribution)
    for pair in check(masks, seed, first + np.arange(3)).values():
        target = painted(pair["target"], frames * height * width)
        planes = target.reshape(3, frames, -1)
        if distribution == "unbiased":
            assert (planes == planes[:, :1]).all()
        else:  # what is cut is cut from the end
            cells = np.arange(target.shape[1])
            whole = np.tile(planes[:, :1], (1, frames, 1)).reshape(3, -1)
            assert (target == whole & (cells <= pair["target"][:, -1:])).all()


@settings(max_examples=600, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(4, 14),
    st.integers(4, 14),
    st.integers(1, 12),
    st.floats(0.02, 0.9),
    st.tuples(st.floats(0.2, 4), st.floats(0.2, 4)),
    st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    distributions,
    seeds,
)
def test_counts_are_exact_or_the_options_refused(
    frames, height, width, count, scale, aspect, lasting, distribution, seed
):
    kind = Kind(
        "one", count, (scale, scale), tuple(sorted(aspect)), temporal_scale=tuple(sorted(lasting))
    )
    try:
        masks = Tubes((frames, height, width), (kind,), distribution=distribution)
    except UserError as error:
        assert "masks.kinds.one" in str(error)
        # Refused only where a union covers nearly all.
        assert 1 - (1 - scale) ** count > 0.7
        return
    check(masks, seed, np.arange(2))


@settings(max_examples=200, deadline=None)
@given(sides, sides, seeds, st.floats(0.1, 0.9))
def test_the_share_masked_can_be_given(height, width, seed, masked):
    masks = Tubes((2, height, width), (Kind("one", 3, (0.2, 0.2), masked=masked),))
    target = check(masks, seed, np.arange(2))["one"]["target"]
    assert target.shape[1] == 2 * round(masked * height * width)


@pytest.mark.parametrize("grid", [(1, 1, 9), (4, 2, 7), (1, 40, 3)])
def test_narrow_grids(grid):
    check(Tubes(grid, (SHORT,)), 0, np.arange(50))


@pytest.mark.parametrize("kind", [SHORT, LONG, IMAGE])
@pytest.mark.parametrize("height,width", [(16, 16), (9, 14)])
def test_counts_are_the_published_expectations(kind, height, width):
    unions = published_unions(height, width, kind)
    cells = height * width
    counts = Tubes((8, height, width), (kind,)).counts[kind.name]
    assert abs(counts["target"] / 8 - unions.mean()) < 0.012 * cells
    counts = Tubes((8, height, width), (kind,), distribution="published").counts[kind.name]
    assert abs(counts["target"] / 8 - unions.min(axis=1).mean()) < 0.02 * cells
    assert abs(counts["context"] / 8 - (cells - unions).min(axis=1).mean()) < 0.02 * cells


def test_unbiased_masks_are_symmetric_and_reach_every_row_and_column():
    masks = Tubes((1, 6, 9))
    for pair in masks.sample(5, np.arange(6000)).values():
        target = painted(pair["target"], 54).reshape(-1, 6, 9)
        share = target.mean(axis=0)
        assert share.min() > 0.2 and share[0, 0] < 0.5
        # 216 scores: beyond 4.5 once in seven hundred such tests.
        assert mirror_scores(target).max() < 4.5


def test_blocks_that_end_are_symmetric_in_time():
    kind = Kind("short", 2, (0.2, 0.2), temporal_scale=(0.4, 0.6))
    masks = Tubes((5, 4, 4), (kind,))
    target = painted(masks.sample(5, np.arange(6000))["short"]["target"], 80)
    target = target.reshape(-1, 5, 16)
    share = target.mean(axis=(0, 2))
    assert share.min() > 0.05 and share[2] > share[0]
    assert mirror_scores(target)[0].max() < 4.5


def test_published_masks_prefer_the_top_and_the_beginning():
    masks = Tubes((4, 8, 8), distribution="published")
    for pair in masks.sample(5, np.arange(1000)).values():
        context = painted(pair["context"], 256).reshape(-1, 4, 64)
        counts = context.sum(axis=2).mean(axis=0)
        assert (np.diff(counts) <= 0).all() and counts[-1] < counts[0]


@pytest.mark.parametrize("distribution", blocks.DISTRIBUTIONS)
def test_a_sample_depends_on_its_seed_and_index_alone(distribution):
    masks = pickle.loads(pickle.dumps(Tubes((2, 10, 12), distribution=distribution)))
    together = masks.sample(3, np.arange(100, 200))
    for alone in (100, 150, 199):
        for name, pair in masks.sample(3, np.array([alone])).items():
            for part, ids in pair.items():
                np.testing.assert_array_equal(ids[0], together[name][part][alone - 100])
    for other in (masks.sample(3, np.arange(1100, 1200)), masks.sample(4, np.arange(100, 200))):
        same = [(other[name]["target"] == together[name]["target"]).all(axis=1) for name in other]
        assert np.logical_and(*same).mean() < 0.02


def test_kinds_are_independent_of_their_order():
    one = Tubes((1, 8, 8), (SHORT, LONG)).sample(0, np.arange(5))
    other = Tubes((1, 8, 8), (LONG, SHORT)).sample(0, np.arange(5))
    for name in one:
        np.testing.assert_array_equal(one[name]["target"], other[name]["target"])


@pytest.mark.parametrize("lasting", [(1.0, 1.0), (0.3, 0.6)])
def test_published_masks_end_their_search(monkeypatch, lasting):
    monkeypatch.setattr(blocks, "ATTEMPTS", 0)
    kind = Kind("one", 4, (0.3, 0.3), temporal_scale=lasting)
    check(Tubes((3, 9, 9), (kind,), distribution="published"), 0, np.arange(50))


def _kinds(**options):
    return {"kinds": {"long": {"blocks": 2, "scale": 0.7, **options}}}


@pytest.mark.parametrize(
    "options,words",
    [
        (_kinds(blocks=0), ["masks.kinds.long.blocks is 0", "1 to"]),
        (_kinds(scale=1.5), ["masks.kinds.long.scale", "up to 1"]),
        (
            _kinds(scale=0.99, aspect=1.0),
            ["masks.kinds.long", "6x6", "0 tokens for the context", "lower its blocks"],
        ),
        (_kinds(masked=0.0), ["masks.kinds.long", "no token for the target", "raise its masked"]),
        (_kinds(masked=1.2), ["masks.kinds.long.masked is 1.2", "below 1"]),
        (_kinds(masked=0.9) | {"distribution": "published"}, ["long.masked", "take one"]),
        (_kinds(ratio=1), ["masks.kinds.long.ratio"]),
        ({"kinds": {"long": {"blocks": 2}}}, ["masks.kinds.long", "'scale'"]),
        ({"kinds": {}}, ["masks.kinds", "at least one"]),
        ({"kinds": "short"}, ["masks.kinds is 'short'", "section"]),
        ({"kinds": {"long": 8}}, ["masks.kinds.long is 8", "section"]),
        ({"targets": 4}, ["masks.targets", "known are"]),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(UserError) as caught:
        from_config({"sampler": "tubes", **options}, (2, 6, 6))
    for word in words:
        assert word in str(caught.value)


def test_a_config_makes_the_sampler():
    config = ml_collections.ConfigDict(
        {
            "sampler": "tubes",
            "kinds": {"short": {"blocks": 8, "scale": 0.15}, "long": {"blocks": 2, "scale": 0.7}},
        }
    )
    grid = (4, 8, 8)
    made, default = from_config(config, grid), Tubes(grid)
    assert made.counts == default.counts
    assert set(made.kinds) == set(default.kinds)
