"""Frame choices and the random numbers behind them, against closed forms and by property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa import hashing
from jepa.data import sampling
from jepa.data.sampling import Purpose


def frames(count, rate=8.0, *, n=4, fps=None, offset=0.5):
    return sampling.frame_indices([count], [rate], frames=n, fps=fps, offset=[offset])[0].tolist()


def test_uniform_takes_the_middle_of_equal_stretches():
    assert frames(16) == [2, 6, 10, 14]
    assert frames(16, n=8) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert frames(16, offset=0.0) == [0, 4, 8, 12]
    assert frames(5, n=3) == [0, 2, 4]


def test_a_window_has_the_target_rate_and_lies_in_the_middle():
    assert frames(16, rate=8.0, fps=8.0) == [6, 7, 8, 9]
    assert frames(30, rate=24.0, fps=8.0) == [10, 13, 16, 19]
    assert frames(30, rate=24.0, fps=8.0, offset=0.0) == [0, 3, 6, 9]
    assert frames(30, rate=24.0, fps=8.0, offset=0.9999) == [20, 23, 26, 29]
    # A rate that divides badly: 2.5 frames a step.
    assert frames(20, rate=20.0, fps=8.0, offset=0.0) == [0, 2, 5, 7]
    # Slower video than asked for: frames repeat.
    assert frames(10, rate=4.0, fps=8.0, offset=0.0) == [0, 0, 1, 1]


def test_short_clips_repeat_their_last_frame():
    assert frames(3, n=6) == [0, 1, 2, 2, 2, 2]
    assert frames(1, n=4) == [0, 0, 0, 0]
    assert frames(3, fps=8.0, n=5, offset=0.9) == [0, 1, 2, 2, 2]
    assert frames(1, rate=1.0, fps=8.0) == [0, 0, 0, 0]


@given(
    count=st.integers(1, 500),
    n=st.integers(1, 64),
    rate=st.floats(1, 120),
    fps=st.none() | st.floats(0.5, 60),
    offset=st.floats(0, 1, exclude_max=True),
)
def test_indices_are_inside_and_ordered(count, n, rate, fps, offset):
    chosen = np.array(frames(count, rate, n=n, fps=fps, offset=offset))
    assert chosen.min() >= 0 and chosen.max() < count and (np.diff(chosen) >= 0).all()


def test_rows_do_not_depend_on_their_batch():
    counts, rates = np.array([3, 16, 60]), np.array([8.0, 24.0, 30.0])
    offsets = np.array([0.1, 0.6, 0.99])
    whole = sampling.frame_indices(counts, rates, frames=5, fps=6.0, offset=offsets)
    for row in range(3):
        one = slice(row, row + 1)
        part = sampling.frame_indices(
            counts[one], rates[one], frames=5, fps=6.0, offset=offsets[one]
        )
        np.testing.assert_array_equal(whole[one], part)


def test_every_window_and_offset_is_drawn_alike():
    positions = np.arange(20_000)
    draws = hashing.uniform(0, positions, Purpose.WINDOW)
    many = np.full(len(positions), 10)
    starts = sampling.frame_indices(many, many, frames=4, fps=10.0, offset=draws)[:, 0]
    share = np.bincount(starts, minlength=7) / len(positions)
    np.testing.assert_allclose(share, 1 / 7, atol=0.01)


def test_uniforms_are_uniform_and_independent():
    positions = np.arange(50_000)
    one = hashing.uniform(1, positions, Purpose.TASK)
    others = [
        hashing.uniform(1, positions, Purpose.QUERY),
        hashing.uniform(2, positions, Purpose.TASK),
        hashing.uniform(1, positions + 1, Purpose.TASK),
    ]
    share = np.histogram(one, bins=20, range=(0, 1))[0] / len(one)
    np.testing.assert_allclose(share, 1 / 20, atol=0.004)
    for other in others:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert one.min() >= 0 and one.max() < 1


def test_draws_stay_what_they_were():
    # A change of these numbers would change every run that goes on from a checkpoint.
    found = hashing.bits(3, np.array([0, 1, 1 << 40]), Purpose.TARGET)
    assert found.tolist() == [_reference(3, p, 3) for p in (0, 1, 1 << 40)]


def _reference(seed, position, purpose):
    """The hash in plain integers."""
    full = (1 << 64) - 1

    def finalise(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & full
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & full
        return x ^ (x >> 31)

    state = seed
    for value in (purpose, position):
        state = finalise((state + 0x9E3779B97F4A7C15) & full) ^ value
    return finalise((state + 0x9E3779B97F4A7C15) & full)


@pytest.mark.parametrize("control", ["none", "blank", "single", "shuffled"])
def test_controls(control):
    indices = np.tile(np.arange(6) * 2, (200, 1))
    found = sampling.control_frames(indices, control, seed=0, positions=np.arange(200))
    if control in ("none", "blank"):
        np.testing.assert_array_equal(found, indices)
    elif control == "single":
        assert (found == found[:, :1]).all() and set(found[:, 0]) == set(range(0, 12, 2))
    else:
        np.testing.assert_array_equal(np.sort(found, axis=1), indices)
        assert len({tuple(row) for row in found}) > 100
