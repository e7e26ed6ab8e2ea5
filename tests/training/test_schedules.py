import math

import jax
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.training import schedules


def values(name, steps=100, **kwargs):
    rate = schedules.learning_rate(name, peak=2.0, steps=steps, **kwargs)
    return np.array([rate(step) for step in range(steps + 5)])


def test_warmup_is_linear_and_ends_at_the_peak():
    got = values("constant", warmup_steps=10)
    np.testing.assert_allclose(got[:10], [2.0 * (s + 1) / 10 for s in range(10)], rtol=1e-6)
    np.testing.assert_allclose(got[10:], 2.0)


def test_cosine_closed_form():
    got = values("cosine", warmup_steps=20, final_factor=0.1)
    want = [
        2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min((s - 20) / 80, 1))))
        for s in range(20, 105)
    ]
    np.testing.assert_allclose(got[20:], want, rtol=2e-6)
    assert got.argmax() in (19, 20)


def test_linear_stops_falling_after_decay_steps():
    got = values("linear", warmup_steps=4, decay_steps=16, final_factor=0.25)
    np.testing.assert_allclose(got[12], 2.0 * (1 - 0.75 * 8 / 16), rtol=1e-6)
    np.testing.assert_allclose(got[20:], 0.5, rtol=1e-6)


def test_wsd_is_flat_until_its_last_steps():
    got = values("wsd", warmup_steps=5, decay_steps=20)
    np.testing.assert_allclose(got[5:81], 2.0, rtol=1e-6)
    np.testing.assert_allclose(got[80:100], [2.0 * (1 - k / 20) for k in range(20)], rtol=1e-5)


def test_wsd_decays_over_a_tenth_by_default():
    got = values("wsd")
    assert got[90] == 2.0 and got[91] < 2.0


def test_traced_and_plain_steps_agree():
    rate = schedules.learning_rate("cosine", peak=1e-3, steps=50, warmup_steps=5)
    np.testing.assert_array_equal(jax.jit(rate)(np.int32(17)), rate(17))


@pytest.mark.parametrize(
    "name, kwargs, word",
    [
        ("cosin", {}, "cosin"),
        ("wsd", {"warmup_steps": 60, "decay_steps": 60}, "exceed"),
        ("linear", {"warmup_steps": -1}, "warmup_steps"),
        ("linear", {"decay_steps": 0}, "decay"),
    ],
)
def test_bad_schedules(name, kwargs, word):
    with pytest.raises(UserError, match=word):
        values(name, **kwargs)


@pytest.mark.parametrize("name, middle", [("linear", 0.95), ("cosine", 0.95), ("constant", 0.9)])
def test_momentum(name, middle):
    momentum = schedules.momentum(name, start=0.9, final=1.0, steps=10)
    np.testing.assert_allclose(momentum(0), 0.9, rtol=1e-6)
    np.testing.assert_allclose(momentum(5), middle, rtol=1e-6)
    np.testing.assert_allclose(momentum(10), 0.9 if name == "constant" else 1.0, rtol=1e-6)


def test_bad_momentum():
    with pytest.raises(UserError, match="final_momentum"):
        schedules.momentum("linear", start=0.9, final=1.1, steps=10)
