"""What a clip says agrees with what was simulated, and with what can be seen in its pixels."""

import collections
import re

import numpy as np
import pytest

from jepa.data.world import scene, words
from jepa.data.world.physics import FPS

MANY = 700


@pytest.fixture(scope="module")
def clips():
    found = collections.defaultdict(list)
    for index in range(MANY):
        clip = scene(3, "train", index, draw=False)
        found[clip.labels["kind"]].append(clip)
    return found


def full(clip):
    return next(text for name, text, _ in clip.captions if name == "full")


def travel(track):
    return track.xy[-1] - track.xy[0]


def named(clip, text):
    """The tracks in the order in which a text names their colours."""
    by_colour = {track.colour: track for track in clip.tracks}
    return [by_colour[word] for word in re.findall(r"\w+", text) if word in by_colour]


def test_same_arguments_give_the_same_clip():
    for split, index in (("train", 5), ("novel", 15), ("surprise", 1)):
        one, other = scene(1, split, index), scene(1, split, index)
        assert np.array_equal(one.frames, other.frames)
        assert (one.captions, one.questions, one.labels) == (
            other.captions,
            other.questions,
            other.labels,
        )


def test_a_clip_does_not_depend_on_which_were_made_before():
    alone = scene(1, "train", 9).frames
    for index in range(9):
        scene(1, "train", index, draw=False)
    assert np.array_equal(scene(1, "train", 9).frames, alone)


def test_another_seed_gives_another_clip():
    assert not np.array_equal(scene(1, "train", 0).frames, scene(2, "train", 0).frames)


def test_every_kind_occurs(clips):
    assert set(clips) == {
        "move", "fall", "bounce", "throw", "slide", "collide", "occlude", "appear", "vanish",
        "recolour", "order", "count", "control",
    }  # fmt: skip


def test_direction_labels_are_the_displacement(clips):
    for kind in ("move", "fall", "slide", "occlude"):
        for clip in clips[kind]:
            mover = max(clip.tracks, key=lambda track: np.abs(travel(track)).max())
            along = np.dot(travel(mover), words.DIRECTIONS[clip.labels["direction"]])
            assert along >= 14
            assert along > 2 * (np.abs(travel(mover)).sum() - along)


def test_direction_captions_and_answers_are_the_label(clips):
    phrases = words.DIRECTION_PHRASES
    for clip in clips["move"] + clips["slide"] + clips["occlude"]:
        right = phrases[clip.labels["direction"]]
        wrong = [phrase for phrase in phrases.values() if phrase != right]
        for _, text, level in clip.captions:
            assert (right in text) == (level != "brief")
            assert not any(phrase in text for phrase in wrong)
        for _, _, answer, kind, _ in clip.questions:
            assert kind != "direction" or answer == right


def test_subjects_are_described_as_they_are(clips):
    for clip in sum(clips.values(), []):
        if "colour" not in clip.labels:
            continue
        (track,) = clip.tracks
        assert full(clip).count(f"{track.size} {track.colour} {track.shape}") == 1
        low, high = words.SIZES[clip.labels["size"]]
        assert low <= track.radius <= high
        assert np.abs(track.rgb - words.COLOURS[track.colour]).max() < 34


def test_objects_of_a_scene_differ_in_colour_and_shape(clips):
    for clip in sum(clips.values(), []):
        count = len(clip.tracks)
        assert len({t.colour for t in clip.tracks}) == len({t.shape for t in clip.tracks}) == count
        assert words.COUNTS[count] == clip.labels["count"]


def test_falling_objects_bounce_or_stay_as_told(clips):
    for kind in ("fall", "bounce"):
        for clip in clips[kind]:
            y = clip.tracks[0].xy[:, 1]
            after = y[int(np.ceil(clip.events[0].time * FPS)) :]
            rise = y.max() - after.min()
            assert rise > 7 if kind == "bounce" else rise < 1
            assert y.max() - y[0] > 14


def test_sliding_objects_stop(clips):
    for clip in clips["slide"]:
        x, y = clip.tracks[0].xy.T
        steps = np.abs(np.diff(x))
        assert steps[-1] < 0.1 < 2 < steps[0]
        assert np.ptp(y) < 0.5
        stopped = np.flatnonzero(steps > 0.1)[-1] / FPS
        assert abs(clip.events[0].time - stopped) < 0.3


def test_the_hitter_moves_first_and_the_other_moves_after_the_hit(clips):
    for clip in clips["collide"]:
        hitter, target = named(clip, full(clip))
        hit = clip.events[1].time
        before = int(np.floor(hit * FPS)) + 1
        assert np.abs(hitter.xy[:before] - hitter.xy[0]).max() > 2
        assert np.abs(target.xy[:before] - target.xy[0]).max() < 1e-6
        assert np.hypot(*travel(target)) > 3
        answer = next(answer for _, _, answer, kind, _ in clip.questions if kind == "hit")
        assert answer == f"the {hitter.shape}"


def test_the_first_of_two_events_is_where_its_label_says(clips):
    found = collections.Counter()
    for clip in clips["order"]:
        first, second = named(clip, full(clip))
        # Who is told first in the caption is the one whose event comes first.
        assert clip.events[0].time < clip.events[1].time
        assert clip.events[0].subjects[0].endswith(f"{first.colour} {first.shape}")
        places = {True: "upper left", False: "lower right"}
        assert np.all(first.xy[0] < second.xy[0]) or np.all(first.xy[0] > second.xy[0])
        assert clip.labels["first"] == places[bool(np.all(first.xy[0] < second.xy[0]))]
        found[clip.labels["first"]] += 1
    assert min(found.values()) > 0.3 * found.total()
    assert not any(
        "first" in c.labels for c in sum(clips.values(), []) if c.labels["kind"] != "order"
    )


def test_occluded_objects_are_hidden_in_between_and_seen_at_both_ends(clips):
    for clip in clips["occlude"][:12]:
        frames = scene(3, "train", int(clip.key[-6:])).frames
        seen = [count for count, _, _ in look(frames, words.COLOURS[clip.labels["colour"]])]
        assert min(seen[0], seen[-1]) > 30
        assert min(seen) < 0.35 * max(seen)
        assert np.argmin(seen) not in (0, 15)


def test_order_is_the_order_of_the_events(clips):
    for clip in clips["order"]:
        tracks = named(clip, full(clip))
        verbs = re.findall(r"appears|vanishes|moves", full(clip))
        times = []
        for track, verb in zip(tracks, verbs, strict=True):
            if verb == "moves":
                course = np.hypot(*(track.xy - track.xy[0]).T)
                assert course[-1] > 12
                assert (track.alpha == 1).all()
            else:
                course = track.alpha
                assert (course[0], course[-1]) == ((0, 1) if verb == "appears" else (1, 0))
            times.append(
                np.argmax(np.abs(course - course[0]) > 0.5 * np.abs(course[-1] - course[0]))
            )
        assert times[1] - times[0] >= 4
        answer = next(answer for _, _, answer, kind, _ in clip.questions if kind == "order")
        assert answer == f"the {tracks[0].shape} {verbs[0]}"


def test_things_appear_vanish_and_change_as_told(clips):
    for clip in clips["appear"]:
        assert (clip.tracks[0].alpha[0], clip.tracks[0].alpha[-1]) == (0, 1)
    for clip in clips["vanish"]:
        assert (clip.tracks[0].alpha[0], clip.tracks[0].alpha[-1]) == (1, 0)
    for clip in clips["recolour"]:
        old, new = re.search(r"from (\w+) to (\w+)", full(clip)).groups()
        assert old != new
        for rgb, name in ((clip.tracks[0].rgb[0], old), (clip.tracks[0].rgb[-1], new)):
            gaps = {c: np.abs(rgb - v).sum() for c, v in words.COLOURS.items()}
            assert min(gaps, key=gaps.get) == name


def test_steered_bodies_carry_actions_and_states(clips):
    pushes = 0
    for clip in clips["control"]:
        assert clip.actions.shape == (16, 2)
        assert clip.states.shape == (16, 8)
        assert clip.actions.dtype == clip.states.dtype == np.float32
        steered, other = named(clip, full(clip))
        shift = np.hypot(*travel(other))
        assert np.abs(clip.states[:, 0] - steered.xy[:, 0]).max() < 0.2
        assert np.abs(clip.states[:, 5] - other.xy[:, 1]).max() < 1e-3
        if "pushes" in full(clip):
            assert shift > 6
        elif "touches" not in full(clip):
            assert shift < 1e-3
        pushes += "pushes" in full(clip)
        # The body follows its commands with a short delay, as long as nothing is in the way.
        if shift < 1e-3 and np.abs(steered.xy - 32).max() < 22:
            moved = np.diff(steered.xy, axis=0) * FPS
            assert np.corrcoef(moved[2:].ravel(), clip.actions[1:-2].ravel())[0, 1] > 0.8
    assert pushes


def test_sentences_are_short_and_complete(clips):
    for clip in sum(clips.values(), []):
        assert [level for *_, level in clip.captions].count("full") == 3
        assert len({name for name, *_ in clip.captions}) == len(clip.captions)
        for _, text, _ in clip.captions:
            assert "{" not in text
            assert len(text.split()) <= 20
        assert 3 <= len(clip.questions) <= 6


def look(frames, rgb):
    """For each frame: how many pixels have about the colour, and where they are on average."""
    found = []
    for frame in frames.astype(int):
        y, x = np.nonzero(np.abs(frame - np.array(rgb)).max(axis=-1) < 45)
        found.append((len(x), x.mean() if len(x) else np.nan, y.mean() if len(x) else np.nan))
    return found


def test_motion_and_place_can_be_read_from_the_pixels(clips):
    for clip in [c for c in clips["move"] if "colour" in c.labels][:24]:
        frames = scene(3, "train", int(clip.key[-6:])).frames
        assert frames.shape == (16, 64, 64, 3)
        assert frames.dtype == np.uint8
        seen = look(frames, words.COLOURS[clip.labels["colour"]])
        assert min(count for count, _, _ in seen) > 20
        shift = np.array(seen[-1][1:]) - np.array(seen[0][1:])
        assert np.dot(shift, words.DIRECTIONS[clip.labels["direction"]]) > 10
