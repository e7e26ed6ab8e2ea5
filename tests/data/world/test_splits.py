"""Splits share nothing, groups differ in one thing, the impossible differs from the possible."""

import collections

import numpy as np
import pytest

from jepa.data.world import scene, words
from jepa.data.world.physics import reach
from jepa.data.world.splits import GROUPED, LATTICE, LAYOUT, SPLITS, block_size, compose, slot

SIZES = {"train": 400, "validation": 200, "novel": 200, "hard": 160, "surprise": 80}


@pytest.fixture(scope="module")
def clips():
    return {
        split: [scene(0, split, index, draw=False) for index in range(count)]
        for split, count in SIZES.items()
    }


def full(clip):
    return next(text for name, text, _ in clip.captions if name == "full")


def groups(found):
    members = collections.defaultdict(list)
    for clip in found:
        if clip.group:
            members[clip.group].append(clip)
    return members


def test_no_two_splits_can_share_a_scene(clips):
    starts = {}
    for split, found in clips.items():
        places = {round(float(clip.tracks[0].xy[0, 0] * LATTICE), 6) for clip in found}
        assert {place % 5 for place in places} == {SPLITS.index(split)}
        starts[split] = places
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not starts[one] & starts[other]


def test_no_scene_occurs_twice_in_train_and_validation(clips):
    found = clips["train"] + clips["validation"]
    scenes = {(full(c), c.tracks[0].xy.tobytes(), c.tracks[0].rgb.tobytes()) for c in found}
    assert len(scenes) == len(found)


def test_held_out_pairs_are_seen_in_novel_only(clips):
    assert len(words.HELD_OUT) == 6
    for split, found in clips.items():
        for clip in found:
            pairs = {(track.colour, track.shape) for track in clip.tracks}
            assert bool(pairs & words.HELD_OUT) == (split == "novel")
            if split != "novel":
                for _, text, _ in clip.captions:
                    assert not any(f"{c} {s}" in text for c, s in words.HELD_OUT)


def test_what_recolours_does_not_become_a_held_out_pair():
    seen = 0
    for index in range(600):
        clip = scene(0, "train", index, draw=False)
        if clip.labels["kind"] == "recolour":
            new = full(clip).rsplit(" ", 1)[-1]
            assert (new, clip.labels["shape"]) not in words.HELD_OUT
            seen += 1
    assert seen > 10


def test_blocks_hold_whole_groups():
    assert block_size("train") == 20
    assert block_size("hard") == 8
    for split in LAYOUT:
        slots = [slot(split, index) for index in range(3 * block_size(split))]
        for index, at in enumerate(slots):
            assert at.first <= index < at.first + at.members
            assert (at.variant is None) == (at.members == 1)
            assert at.variant is None or at.variant == index - at.first
    assert all(at.group for at in [slot(s, i) for s in GROUPED for i in range(16)])


def test_three_tenths_of_the_training_clips_stand_in_groups(clips):
    grouped = [clip for clip in clips["train"] if clip.group]
    assert len(grouped) == 0.3 * len(clips["train"])
    assert not {c.group for c in grouped} & {c.group for c in clips["hard"]}


def test_groups_differ_in_motion_alone(clips):
    kinds = collections.Counter()
    for members in [*groups(clips["hard"]).values(), *groups(clips["train"]).values()]:
        assert len(members) in (2, 4)
        assert len({full(clip) for clip in members}) == len(members)
        looks = [[(t.colour, t.shape, t.size, t.radius) for t in c.tracks] for c in members]
        assert all(look == looks[0] for look in looks)
        assert all(np.array_equal(c.tracks[0].rgb, members[0].tracks[0].rgb) for c in members)
        if len(members) == 4:
            assert {c.labels["direction"] for c in members} == set(words.DIRECTIONS)
        kinds["/".join(sorted({c.labels["kind"] for c in members}))] += 1
    assert set(kinds) == {"move", "order", "appear/vanish"}


def test_members_of_a_group_share_background_and_camera():
    for first, count in ((0, 4), (4, 2)):
        made = [compose(0, "hard", first + k)[0] for k in range(count)]
        for other in made[1:]:
            assert np.array_equal(made[0].backdrop.texture, other.backdrop.texture)
            assert np.array_equal(made[0].backdrop.top, other.backdrop.top)
            assert np.array_equal(made[0].shake, other.shake)


def test_the_middle_of_a_motion_group_does_not_tell_the_direction():
    frames = [scene(0, "hard", index).frames.astype(int) for index in range(4)]
    middle = [f[7:9].mean(axis=0) for f in frames]
    edge = [f[0] for f in frames]
    for k in range(1, 4):
        assert np.abs(middle[0] - middle[k]).mean() < 0.4 * np.abs(edge[0] - edge[k]).mean()


def test_vanishing_is_appearing_played_backwards():
    frames = [scene(0, "hard", index).frames.astype(int) for index in (6, 7)]
    # The two stand up to 1/8 px apart: their splits' lattice is reached separately.
    assert np.abs(frames[0] - frames[1][::-1]).max() <= 1
    assert np.abs(frames[0] - frames[1]).max() > 50


def test_the_impossible_differs_from_the_possible_after_the_violation_only():
    seen = set()
    for index in range(0, SIZES["surprise"], 2):
        right, wrong = (scene(0, "surprise", index + k) for k in range(2))
        assert right.group == wrong.group
        assert (right.labels["possible"], wrong.labels["possible"]) == ("yes", "no")
        assert full(right) != full(wrong)
        gap = np.abs(right.frames.astype(int) - wrong.frames).max(axis=(1, 2, 3))
        assert gap[-1] > 40
        start = int(np.flatnonzero(gap)[0])
        assert 4 <= start <= 13
        assert start / 8 >= wrong.events[-1].time - 1e-6
        seen.add(right.labels["violation"])
    assert seen == {"wall", "gone", "swap", "teleport"}


def test_a_wall_is_touched_and_not_entered_where_it_holds():
    seen = 0
    for index in range(0, SIZES["surprise"], 2):
        made = compose(0, "surprise", index)[0]
        if made.labels["violation"] != "wall":
            continue
        (track,), (box,) = made.tracks, made.boxes
        axis = int(np.ptp(track.xy[:, 1]) > np.ptp(track.xy[:, 0]))
        low, high = box.rect[axis], box.rect[axis + 2]
        path = track.xy[:, axis]
        way = 1 if path[0] < low else -1
        front = reach(track.shape, track.radius, (way, 0) if axis == 0 else (0, way))
        gap = (low if way > 0 else -high) - (way * path + front)
        # Frames fall up to 1/16 s from the touch, and the lattice shifts the object by 1/8 px.
        assert -0.6 < gap.min() < 1.6
        assert gap[-1] > gap.min() + 2
        seen += 1
    assert seen >= 4
