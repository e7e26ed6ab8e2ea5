"""Schedules in closed form, and at the corners of the papers' own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa.errors import UserError
from jepa.training import config as configs
from jepa.training import optimizer, schedules


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


# The papers' schedules, by the keys of a config. I-JEPA: arXiv 2301.08243, appendix A.1 (300 epochs
# of 625 steps, 40 of them to warm up as in the published config); V-JEPA: 2404.08471, table 6 (300
# epochs of 300 steps, ipe_scale 1.25); V-JEPA 2: 2506.09985, table 10, and its published configs.
I_JEPA = {
    "optimizer": {
        "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 25_000, "start_factor": 0.2,
        "final_factor": 1e-3, "weight_decay": 0.04, "final_weight_decay": 0.4, "clip_norm": None,
    },
    "ema": {"momentum": 0.996, "final_momentum": 1.0},
    "steps": 187_500,
}  # fmt: skip
V_JEPA = {
    "optimizer": {
        "learning_rate": 6.25e-4, "schedule": "cosine", "warmup_steps": 12_000,
        "start_factor": 2e-4 / 6.25e-4, "final_factor": 1e-6 / 6.25e-4, "schedule_scale": 1.25,
        "weight_decay": 0.04, "final_weight_decay": 0.4, "clip_norm": 10.0, "clip_from": 12_000,
    },
    "ema": {"momentum": 0.998, "final_momentum": 1.0, "schedule_scale": 1.25},
    "steps": 90_000,
}  # fmt: skip
FIXED = {"momentum": 0.99925, "schedule": "constant"}
V_JEPA_2_MAIN = {
    "optimizer": {
        "learning_rate": 5.25e-4, "schedule": "constant", "warmup_steps": 12_000,
        "start_factor": 1e-4 / 5.25e-4, "weight_decay": 0.04,
    },
    "ema": FIXED, "steps": 240_000,
}  # fmt: skip
V_JEPA_2_COOLDOWN = {
    "optimizer": {
        "learning_rate": 5.25e-4, "schedule": "linear", "final_factor": 1e-6 / 5.25e-4,
        "weight_decay": 0.04,
    },
    "ema": FIXED, "steps": 12_000,
}  # fmt: skip


def of(paper, first=0, **changes):
    """(rate, weight decay, momentum) by step, as the train step of such a config has them."""
    section = {**configs.default_optimizer_config(), **paper["optimizer"], **changes}
    made = configs.ConfigDict(
        {
            "ema": {**configs.default_ema_config(), **paper["ema"]},
            "train": {"steps": paper["steps"]},
        }
    )
    if "schedule_scale" in changes:
        made.ema.schedule_scale = changes["schedule_scale"]
    built = optimizer.make(section, steps=paper["steps"], first=first)
    return built.schedule, built.weight_decay, configs.ema_schedule(made, first)


def cosine(start, end, share):
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def close(schedule, want, **tolerance):
    for step, value in want.items():
        np.testing.assert_allclose(schedule(step), value, err_msg=str(step), **tolerance)


def test_i_jepa():
    rate, decay, momentum = of(I_JEPA)
    end = I_JEPA["steps"]
    close(
        rate,
        {0: 2e-4 + 8e-4 / 25_000, 12_499: 6e-4, 24_999: 1e-3, 25_000: 1e-3,
         25_000 + 81_250: (1e-3 + 1e-6) / 2, end: 1e-6},
        rtol=1e-5,
    )  # fmt: skip
    close(rate, {end - 1: 1e-6}, rtol=1e-3)
    close(decay, {0: 0.04, end // 2: 0.22, end // 4: cosine(0.04, 0.4, 0.25), end: 0.4}, rtol=1e-5)
    close(momentum, {0: 0.996, end // 2: 0.998, end: 1.0, end - 1: 1.0 - 0.004 / end}, rtol=1e-6)


def test_v_jepa_is_cut_before_its_schedules_end():
    rate, decay, momentum = of(V_JEPA)
    end = V_JEPA["steps"]
    share = (90_000 - 12_000) / (1.25 * 90_000 - 12_000)
    close(
        rate,
        {0: 2e-4 + 4.25e-4 / 12_000, 11_999: 6.25e-4, 12_000: 6.25e-4,
         12_000 + 50_250: (6.25e-4 + 1e-6) / 2, end: cosine(6.25e-4, 1e-6, share)},
        rtol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(rate(end), 7.5e-5, rtol=0.01)  # not 1e-6
    close(decay, {0: 0.04, 56_250: 0.22, end: cosine(0.04, 0.4, 0.8)}, rtol=1e-5)
    np.testing.assert_allclose(decay(end), 0.3656, rtol=1e-4)  # not .4
    close(momentum, {0: 0.998, 45_000: 0.9988, end: 0.9996}, rtol=1e-6)
    close(of(V_JEPA, schedule_scale=1.0)[0], {end: 1e-6}, rtol=1e-3)


def test_v_jepa_2_in_its_two_phases():
    rate, decay, momentum = of(V_JEPA_2_MAIN)
    close(
        rate,
        {0: 1e-4 + 4.25e-4 / 12_000, 5_999: 3.125e-4, 11_999: 5.25e-4, 12_000: 5.25e-4,
         239_999: 5.25e-4},
        rtol=1e-5,
    )  # fmt: skip
    begin = V_JEPA_2_MAIN["steps"]
    cooldown, late_decay, late_momentum = of(V_JEPA_2_COOLDOWN, first=begin)
    close(cooldown, {begin: 5.25e-4, begin + 6_000: 2.63e-4, begin + 12_000: 1e-6}, rtol=1e-4)
    close(cooldown, {begin + 11_999: 1e-6 + 5.24e-4 / 12_000}, rtol=1e-4)
    for step in (0, 120_000, 239_999, begin, begin + 12_000):
        assert (late_decay if step >= begin else decay)(step) == np.float32(0.04)
        assert (late_momentum if step >= begin else momentum)(step) == np.float32(0.99925)


def test_v_jepa_2_as_its_published_cooldown_is_cut():
    """The published config computes the decay for 1.25 times the steps: it ends far from 1e-6."""
    cooldown, *_ = of(V_JEPA_2_COOLDOWN, schedule_scale=1.25)
    close(cooldown, {0: 5.25e-4, 12_000: 1.058e-4, 15_000: 1e-6}, rtol=1e-4)


def test_v_jepa_2_as_one_phase():
    one = {**V_JEPA_2_MAIN, "steps": 252_000}
    rate, *_ = of(one, schedule="wsd", decay_steps=12_000, final_factor=1e-6 / 5.25e-4)
    two, *_ = of(V_JEPA_2_COOLDOWN, first=240_000)
    close(rate, {step: float(two(step)) for step in (240_000, 246_000, 251_999)}, rtol=1e-5)


def update(built, step, params, gradients):
    state = built.transform.init(params)
    return built.updates(gradients, state, params, jnp.asarray(step))[0]


def test_the_decay_of_a_step_is_that_of_its_schedule():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    changes = {"name": "sgd", "schedule": "constant", "warmup_steps": 0, "learning_rate": 0.5}
    section = {**configs.default_optimizer_config(), **I_JEPA["optimizer"], **changes}
    built = optimizer.make(section, steps=100, first=7)
    for step, decay in ((7, 0.04), (57, 0.22), (107, 0.4)):
        made = update(built, step, params, zeros)
        np.testing.assert_allclose(made["kernel"], -0.5 * decay * 3.0, rtol=1e-5)
        np.testing.assert_array_equal(made["bias"], 0)


def test_a_decay_that_moves_leaves_the_state_of_a_checkpoint_as_it_was():
    params = {"kernel": jnp.ones((2, 2))}
    section = dict(configs.default_optimizer_config())
    constant, moving = (
        optimizer.make({**section, "final_weight_decay": final}, steps=9).transform.init(params)
        for final in (None, 0.4)
    )
    assert jax.tree.structure(constant) == jax.tree.structure(moving)


def test_clipping_begins_after_the_warm_up():
    params = {"kernel": jnp.zeros((2, 2))}
    gradients = {"kernel": jnp.full((2, 2), 20.0)}  # of norm 40
    changes = {"name": "sgd", "schedule": "constant", "learning_rate": 1.0, "clip_norm": 10.0}
    section = {**configs.default_optimizer_config(), **changes, "clip_from": 5}
    built = optimizer.make(section, steps=20, first=100)
    norms = [float(optax.tree.norm(update(built, 100 + s, params, gradients))) for s in (0, 4, 5)]
    np.testing.assert_allclose(norms, [40, 40, 10], rtol=1e-5)
