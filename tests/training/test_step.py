import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.data import prefetch
from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.optimizer import flatten
from jepa.training.state import Initializer
from jepa.training.step import compile_step
from tests.training import toy


@functools.cache
def build(text, devices, arrays):
    """Compiles the step of a config (JSON); returns it with its mesh and its first state."""
    config = configs.resolve(toy.config(**json.loads(text)))
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
    method = toy.Toy(config)
    spec = toy.Loader(config.train.global_batch, config.seed, arrays).element_spec
    step = loop.make_step(config, method)
    initializer = Initializer(
        method, step.optimizer, mesh, spec, seed=config.seed, dtype=config.dtype
    )
    program = compile_step(step, mesh, initializer.shapes, spec)
    return config, mesh, program, initializer.shardings, jax.device_get(initializer.create())


def run(*, steps=20, devices=1, arrays=np.float32, bad_steps=(), **overrides):
    """Trains the toy; returns the last state and what every step reported."""
    config, mesh, program, shardings, first = build(json.dumps(overrides), devices, arrays)
    loader = toy.Loader(config.train.global_batch, config.seed, arrays, bad_steps)
    state, history = jax.device_put(first, shardings), []
    for _ in range(steps):
        batch = prefetch.put(next(loader), meshes.batch_sharding(mesh))
        state, metrics = program(state, batch)
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def series(history, name):
    return np.array([metrics[name] for metrics in history])


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def plain():
    return run()


def test_it_learns(plain):
    _, history = plain
    losses = series(history, "loss")
    assert losses[-5:].mean() < losses[:5].mean()


def test_two_runs_are_bit_identical(plain):
    build.cache_clear()
    state, history = run()
    assert_same(state, plain[0])
    assert_same(history, plain[1])


def test_the_seed_matters(plain):
    state, _ = run(seed=4, steps=1)
    assert not np.array_equal(state.params["head"]["kernel"], plain[0].params["head"]["kernel"])


MESHES = [
    (2, {}),
    (4, {}),
    (8, {}),
    (4, {"mesh__fsdp": 2}),
    (4, {"mesh__tensor": 2}),
    (8, {"mesh__fsdp": 2, "mesh__tensor": 2}),
]


@pytest.fixture(scope="module")
def float64_reference():
    with jax.enable_x64(True):
        return run(dtype="float64", arrays=np.float64)


@pytest.mark.parametrize("devices, mesh", MESHES, ids=str)
def test_float64_runs_agree_on_any_mesh(float64_reference, devices, mesh):
    reference_state, reference = float64_reference
    with jax.enable_x64(True):
        state, history = run(dtype="float64", **mesh, devices=devices, arrays=np.float64)
    assert state.params["head"]["kernel"].dtype == np.float64
    for name in ("loss", "gradient_norm", "mean_error"):
        np.testing.assert_allclose(series(history, name), series(reference, name), rtol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), state, reference_state
    )


def test_float32_agrees_at_the_first_step(plain):
    _, history = run(mesh__fsdp=2, steps=1, devices=8)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(history[0][name], plain[1][0][name], rtol=1e-5)


def test_frozen_parameters_stay_and_cost_no_memory(plain):
    state, _ = run(model__frozen=("target/.*", "encoder/kernel"))
    want = np.linspace(-1, 1, toy.IN * toy.OUT, dtype=np.float32).reshape(toy.IN, toy.OUT)
    np.testing.assert_array_equal(state.params["target"]["kernel"], want)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    trainable = state.params["encoder"]["bias"].size + state.params["head"]["kernel"].size
    assert sum(sizes) == 2 * trainable + 1  # two moments and Adam's count
    assert not np.array_equal(state.params["head"]["kernel"], plain[0].params["head"]["kernel"])


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    ema = configs.default_ema_config().to_dict()
    kwargs = {"model__ema": True, "ema": ema, "optimizer__schedule": "constant"}
    before, _ = run(**kwargs, steps=4)
    after, history = run(**kwargs, steps=6, bad_steps=(4, 5))
    assert not np.isfinite(history[4]["loss"])
    for name in ("params", "target_params", "opt_state", "method_state"):
        assert_same(getattr(before, name), getattr(after, name))
    assert (after.step, after.skipped, after.skipped_in_a_row) == (6, 2, 2)
    recovered, _ = run(**kwargs, steps=7, bad_steps=(4, 5))
    assert (recovered.skipped, recovered.skipped_in_a_row) == (2, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(recovered.params))


def test_ema_follows_its_definition():
    ema = {"momentum": 0.7, "final_momentum": 0.9}
    kwargs = {"model__ema": True, "ema": ema, "model__noise": 0.0}
    start, _ = run(**kwargs, steps=0)
    assert_same(start.params, start.target_params)
    target = flatten(start.target_params)["head/kernel"]
    for steps in (1, 2, 3):
        state, _ = run(**kwargs, steps=steps)
        momentum = 0.7 + 0.2 * (steps - 1) / 20
        target = momentum * target + (1 - momentum) * state.params["head"]["kernel"]
        np.testing.assert_allclose(state.target_params["head"]["kernel"], target, rtol=2e-6)


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulation_of_a_mean_is_the_full_batch(devices):
    one, first = run(model__noise=0.0, devices=devices)
    four, second = run(model__noise=0.0, train__accumulate=4, devices=devices)
    np.testing.assert_allclose(series(first, "loss"), series(second, "loss"), rtol=1e-4)
    np.testing.assert_allclose(
        one.params["head"]["kernel"], four.params["head"]["kernel"], rtol=1e-4, atol=1e-5
    )
    assert one.method_state["seen"] == four.method_state["seen"] == 20 * 16


def test_parameters_lie_where_the_table_says():
    config = configs.resolve(toy.config(mesh__fsdp=2, mesh__tensor=2))
    mesh, method = meshes.make_mesh(config.mesh), toy.Toy(config)
    step = loop.make_step(config, method)
    spec = toy.Loader(16, 0).element_spec
    state = Initializer(method, step.optimizer, mesh, spec, seed=0).create()
    kernel = state.params["encoder"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4)}
    moments = [m for m in jax.tree.leaves(state.opt_state) if m.shape == kernel.shape]
    assert len(moments) == 2
    assert all(m.sharding == kernel.sharding for m in moments)


class Wrong(toy.Toy):
    def __init__(self, config, weights):
        super().__init__(config)
        self.weights = weights

    def pretrained(self):
        return self.weights


@pytest.mark.parametrize(
    "weights, word",
    [
        ({"target": {"kernel": np.zeros((1, 2))}}, r"\(1, 2\)"),
        ({"target": {"kern": np.zeros((1, 2))}}, "target/kern'"),
    ],
)
def test_pretrained_weights_have_to_fit(weights, word):
    config = configs.resolve(toy.config())
    method = Wrong(config, weights)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    step = loop.make_step(config, method)
    spec = toy.Loader(16, 0).element_spec
    with pytest.raises(UserError, match=word):
        Initializer(method, step.optimizer, mesh, spec, seed=0).create()


def test_rate_groups_reach_the_step():
    state, _ = run(model__groups=(("head/.*", 0.0),), steps=3)
    start, _ = run(steps=0)
    np.testing.assert_array_equal(state.params["head"]["kernel"], start.params["head"]["kernel"])
    assert not np.array_equal(state.params["encoder"]["bias"], start.params["encoder"]["bias"])


def test_another_batch_shape_is_an_error_not_a_compilation():
    config = configs.resolve(toy.config())
    mesh, method = meshes.make_mesh(config.mesh, jax.devices()[:1]), toy.Toy(config)
    step = loop.make_step(config, method)
    spec = toy.Loader(16, 0).element_spec
    initializer = Initializer(method, step.optimizer, mesh, spec, seed=0)
    program = compile_step(step, mesh, initializer.shapes, spec)
    batch = jax.tree.map(jnp.asarray, next(toy.Loader(8, 0)))
    with pytest.raises(TypeError):
        program(initializer.create(), batch)
