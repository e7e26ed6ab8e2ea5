import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa.errors import UserError
from jepa.training import optimizer
from jepa.training.config import default_optimizer_config

PARAMS = {
    "tower": {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.full((3,), 0.5)},
    "stack": {"norm": {"scale": jnp.full((4, 3), 0.5)}, "kernel": jnp.full((4, 3, 3), 0.5)},
    "log_temperature": jnp.asarray(0.5),
}
GRADIENTS = jax.tree.map(lambda x: jnp.ones_like(x) * 0.3, PARAMS)


def make(groups=(), frozen=(), **overrides):
    config = default_optimizer_config()
    with config.ignore_type():
        config.update(schedule="constant", learning_rate=0.1, clip_norm=None, **overrides)
    return optimizer.make(config, steps=10, groups=groups, frozen=frozen)


def one_update(made, gradients=GRADIENTS, params=PARAMS):
    updates, _ = made.updates(
        gradients, made.transform.init(params), params, jnp.zeros((), jnp.int32)
    )
    return optimizer.flatten(updates)


def test_split_and_merge_are_inverse():
    trainable, frozen = optimizer.split(PARAMS, ("tower/.*", ".*/scale"))
    assert set(optimizer.flatten(frozen)) == {"tower/kernel", "tower/bias", "stack/norm/scale"}
    assert set(optimizer.flatten(trainable)) == {"stack/kernel", "log_temperature"}
    merged = optimizer.merge(trainable, frozen)
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, PARAMS))


def test_pattern_has_to_match_the_whole_path():
    assert not optimizer.flatten(optimizer.split(PARAMS, ("tower",))[1])


def test_first_adam_step_is_the_rate_times_the_group():
    groups = ((".*/kernel", 0.05), ("tower/.*", 7.0))
    updates = one_update(make(groups=groups, weight_decay=0.0))
    np.testing.assert_allclose(updates["tower/kernel"], -0.1 * 0.05, rtol=1e-5)
    np.testing.assert_allclose(updates["tower/bias"], -0.1 * 7.0, rtol=1e-5)
    np.testing.assert_allclose(updates["log_temperature"], -0.1, rtol=1e-5)


def test_weight_decay_spares_biases_norms_temperatures():
    with_decay, without = one_update(make(weight_decay=0.2)), one_update(make(weight_decay=0.0))
    difference = {key: with_decay[key] - without[key] for key in with_decay}
    for key in ("tower/kernel", "stack/kernel"):
        np.testing.assert_allclose(difference[key], -0.1 * 0.2 * 0.5, rtol=1e-4)
    for key in ("tower/bias", "stack/norm/scale", "log_temperature"):
        np.testing.assert_array_equal(difference[key], 0)


def test_adamw_equals_optax_over_several_steps():
    made = make(weight_decay=0.0)
    reference = optax.adam(0.1, b1=0.9, b2=0.95, eps=1e-8)
    params, state = PARAMS, made.transform.init(PARAMS)
    other, other_state = PARAMS, reference.init(PARAMS)
    for step in range(4):
        gradients = jax.tree.map(lambda x: jnp.sin(x * (step + 1)), params)  # noqa: B023
        updates, state = made.updates(gradients, state, params, jnp.asarray(step))
        params = optax.apply_updates(params, updates)
        gradients = jax.tree.map(lambda x: jnp.sin(x * (step + 1)), other)  # noqa: B023
        updates, other_state = reference.update(gradients, other_state, other)
        other = optax.apply_updates(other, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, other)


def test_clipping_bounds_the_global_norm():
    made = make(name="sgd", b1=0.0, weight_decay=0.0)
    config = default_optimizer_config()
    config.update(name="sgd", b1=0.0, weight_decay=0.0, clip_norm=0.01, schedule="constant")
    config.learning_rate = 0.1
    clipped = optimizer.make(config, steps=10)
    norm = optax.tree.norm(one_update(clipped))
    np.testing.assert_allclose(norm, 0.1 * 0.01, rtol=1e-5)
    assert optax.tree.norm(one_update(made)) > norm


def test_sgd_and_lion_move_against_the_gradient():
    sgd = one_update(make(name="sgd", weight_decay=0.0))
    lion = one_update(make(name="lion", weight_decay=0.0))
    np.testing.assert_allclose(sgd["tower/kernel"], -0.1 * 0.3, rtol=1e-6)
    np.testing.assert_allclose(lion["tower/kernel"], -0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "kwargs, word",
    [
        ({"frozen": ("towel/.*",)}, "towel"),
        ({"groups": (("nothing", 2.0),)}, "nothing"),
        ({"frozen": (".*",)}, "frozen"),
    ],
)
def test_patterns_are_checked(kwargs, word):
    with pytest.raises(UserError, match=word):
        make(**kwargs).check(PARAMS)


def test_unknown_optimizer():
    with pytest.raises(UserError, match="adamx"):
        make(name="adamx")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("no_decay", ("bias(",), r"no_decay has 'bias\('; give a regular expression"),
        ("muon_matrices", (("x",),), r"muon_matrices has \('x',\); give \(regular"),
        ("muon_matrices", (("x", (0,), 1),), "input axis"),
    ],
)
def test_tables_that_are_none(key, value, words):
    with pytest.raises(UserError, match=words):
        make(**{key: value})


def test_muon_makes_each_matrix_of_a_stack_orthogonal_and_leaves_the_rest_to_nadam():
    rng = np.random.default_rng(0)
    params = {
        "blocks": {"mlp": {"in": {"kernel": jnp.zeros((2, 6, 4))}}},
        "head": {"kernel": jnp.zeros((6, 4))},
    }
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    config = {**default_optimizer_config(), "name": "muon", "weight_decay": 0.0}
    config.update(clip_norm=None, schedule="constant", learning_rate=1.0)
    made = optimizer.make(config, steps=10)
    state = made.transform.init(params)
    updates, _ = made.updates(gradients, state, params, jnp.int32(0))
    alone = optax.contrib.scale_by_muon(
        beta=0.95, weight_dimension_numbers={"m": optax.contrib.MuonDimensionNumbers()}
    )
    for layer in range(2):
        update = np.asarray(updates["blocks"]["mlp"]["in"]["kernel"][layer])
        matrix = {"m": gradients["blocks"]["mlp"]["in"]["kernel"][layer]}
        want, _ = alone.update(matrix, alone.init(matrix))
        # Scaled to the size of Adam's updates: 0.2 sqrt(max(inputs, outputs)).
        np.testing.assert_allclose(update, -0.2 * np.sqrt(6) * want["m"], rtol=1e-4, atol=1e-6)
        values = np.linalg.svd(update / (0.2 * np.sqrt(6)), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3
    adam = optax.scale_by_adam(config["b1"], config["b2"], nesterov=True)
    want, _ = adam.update(gradients["head"], adam.init(params["head"]))
    np.testing.assert_allclose(updates["head"]["kernel"], -want["kernel"], rtol=1e-4)
