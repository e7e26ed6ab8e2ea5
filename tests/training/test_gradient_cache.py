"""The cached gradient is that of the whole batch, at the activation memory of a micro-batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import methods
from jepa.data.prefetch import put
from jepa.methods.base import Outputs
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.gradients import accumulated, cached, whole
from jepa.training.state import Initializer
from jepa.training.step import lower
from tests.methods import test_vl_jepa_method as vl_jepa
from tests.training import toy
from tests.training.test_step import assert_same, run, series

QUICK = {"xla_backend_optimization_level": 0}
EXAMPLES, IN, HIDDEN, OUT = 64, 6, 8, 4


def represent(params, state, batch, rng, *, dropout=False, centred=False):
    """A little contrastive method with every kind of output there is."""
    pairs = batch["text"]["x"].shape[0] // batch["x"].shape[0]
    hidden = jnp.tanh(batch["x"] @ params["first"] + params["bias"])
    if dropout:
        hidden = jnp.where(jax.random.bernoulli(rng, 0.7, hidden.shape), hidden, 0.0)
    mean = hidden.mean(axis=0)
    if centred:  # the running mean of batch norm: what is subtracted was seen before
        hidden = hidden - state["mean"]
    outputs = Outputs(
        pooled={
            "prediction": jnp.repeat(hidden @ params["second"], pairs, axis=0),
            "target": batch["text"]["x"] @ params["third"],
        },
        tokens={"hidden": hidden[:, None, :] * params["bias"][:, None]},
        scalars={
            "log_scale": params["log_scale"],
            "hash": batch["text"]["hash"],
            "penalty": jnp.mean(hidden**2),
            "levels": jnp.int32(3),
        },
    )
    return outputs, {"mean": 0.5 * state["mean"] + 0.5 * mean, "seen": state["seen"] + 1}


def objective(outputs):
    prediction, target = outputs.pooled["prediction"], outputs.pooled["target"]
    logits = jnp.exp(outputs.scalars["log_scale"]) * prediction @ target.T
    same = outputs.scalars["hash"][:, None] == outputs.scalars["hash"][None]
    own = jnp.eye(len(logits), dtype=bool)
    contrast = jax.nn.logsumexp(jnp.where(same & ~own, -1e9, logits), axis=1) - jnp.diag(logits)
    position = jnp.arange(len(prediction)) / len(prediction)  # the order of rows matters
    ordered = jnp.mean(position[:, None] * prediction)
    tokens = jnp.mean(jnp.abs(outputs.tokens["hidden"] - 0.1) ** outputs.scalars["levels"])
    loss = contrast.mean() + ordered + 0.3 * outputs.scalars["penalty"] + tokens
    return loss, {"contrast": contrast.mean(), "ordered": ordered}


def problem(pairs=1):
    keys = jax.random.split(jax.random.key(5), 6)
    params = {
        "first": jax.random.normal(keys[0], (IN, HIDDEN)) / 2,
        "bias": jax.random.normal(keys[1], (HIDDEN,)),
        "second": jax.random.normal(keys[2], (HIDDEN, OUT)) / 2,
        "third": jax.random.normal(keys[3], (IN, OUT)) / 2,
        "log_scale": jnp.float32(0.7),
    }
    texts = jax.random.normal(keys[5], (EXAMPLES * pairs, IN))
    text = {"x": texts, "hash": jnp.arange(EXAMPLES * pairs) % 40}
    batch = {"x": jax.random.normal(keys[4], (EXAMPLES, IN)), "text": text}
    state = {"mean": jnp.full((HIDDEN,), 0.2), "seen": jnp.int32(0)}
    return params, state, batch


def result(gradient, params, state, batch, devices=1):
    mesh = meshes.make_mesh({"data": -1}, jax.devices()[:devices])
    arguments = (
        *jax.device_put((params, state), meshes.replicated(mesh)),
        put(jax.device_get(batch), meshes.batch_sharding(mesh)),
        jax.device_put(jax.random.key(9), meshes.replicated(mesh)),
    )
    with jax.set_mesh(mesh):
        program = jax.jit(gradient).lower(*arguments).compile(compiler_options=QUICK)
        return jax.device_get(program(*arguments))


def distance(got, want):
    """The length of the difference over the length."""
    got, want = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (got, want))
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def assert_equal(got, want, tolerance=1e-6):
    assert distance(got.loss, want.loss) < tolerance
    assert got.metrics.keys() == want.metrics.keys()
    for name, value in want.metrics.items():
        np.testing.assert_allclose(got.metrics[name], value, rtol=tolerance, atol=tolerance / 10)
    for leaf, other in zip(
        *map(jax.tree_util.tree_leaves_with_path, (got.gradients, want.gradients)), strict=True
    ):
        assert leaf[0] == other[0] and leaf[1].dtype == other[1].dtype
        assert distance(leaf[1], other[1]) < tolerance, leaf[0]


@functools.cache
def of_the_whole(pairs):
    return result(whole(represent, objective), *problem(pairs))


@pytest.mark.parametrize(
    "parts, devices, pairs",
    [(2, 1, 1), (4, 1, 2), (8, 1, 1), (8, 1, 2), (64, 1, 1), (2, 8, 2), (4, 8, 1), (8, 8, 2)],
)
def test_it_is_the_gradient_of_the_whole_batch(parts, devices, pairs):
    got = result(cached(represent, objective, parts), *problem(pairs), devices)
    assert_equal(got, of_the_whole(pairs))
    assert got.state["seen"] == parts


def test_averaging_micro_batches_is_another_gradient():
    other = result(accumulated(represent, objective, 4), *problem())
    assert distance(other.gradients, of_the_whole(1).gradients) > 0.05


def part_by_part(represent, parts):
    """Differentiates one objective over what the micro-batches gave, put together by hand."""

    def gradient(params, state, batch, rng):
        def loss(params):
            outputs, after = [], state
            for i in range(parts):
                micro = jax.tree.map(lambda x, i=i: x[i::parts], batch)
                key = jax.random.fold_in(rng, i)
                one, after = represent(params, jax.lax.stop_gradient(after), micro, key)
                outputs.append(one)

            def together(*leaves):
                if leaves[0].ndim:
                    return jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:])
                return jnp.stack(leaves).mean().astype(leaves[0].dtype)

            value, metrics = objective(jax.tree.map(together, *outputs))
            return value, (metrics, after)

        (value, (metrics, after)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return type(of_the_whole(1))(value, metrics, after, gradients)

    return gradient


def test_both_passes_draw_the_same_keys_and_see_the_same_state():
    noisy = functools.partial(represent, dropout=True, centred=True)
    want = result(part_by_part(noisy, 4), *problem())
    assert distance(want.gradients, of_the_whole(1).gradients) > 0.05
    for function in (noisy, jax.checkpoint(noisy)):
        got = result(cached(function, objective, 4), *problem())
        assert_equal(got, want)
        np.testing.assert_allclose(got.state["mean"], want.state["mean"], rtol=1e-5)
        assert got.state["seen"] == 4


def test_gradients_of_bfloat16_parameters_are_summed_in_float32():
    params, state, batch = problem()
    few = {name: x.astype(jnp.bfloat16) for name, x in params.items()}
    batch["text"]["x"] *= 30  # large numbers, of which small ones would be lost

    def linear(params, state, batch, rng):
        x = batch["text"]["x"] @ params["third"].astype(jnp.float32)
        return Outputs(pooled={"x": x}), state

    def total(outputs):
        return jnp.sum(outputs.pooled["x"]), {}

    want = result(whole(linear, total), few, state, batch).gradients["third"]
    got = result(cached(linear, total, 64), few, state, batch).gradients["third"]
    assert got.dtype == want.dtype == jnp.bfloat16
    assert distance(np.float32(got), np.float32(want)) < 4e-3  # a rounding, not 64 of them


@pytest.mark.parametrize(
    "wrong",
    [
        lambda params, x: jnp.stack([x, x]),  # views first
        lambda params, x: params["bias"],  # a learnt vector
        lambda params, x: x[:1],
        lambda params, x: jnp.concatenate([x, x[:1]]),
    ],
)
def test_outputs_that_are_no_rows_of_examples_are_refused(wrong):
    def bad(params, state, batch, rng):
        return Outputs(pooled={"odd": wrong(params, batch["x"])}), state

    params, state, batch = problem()
    for parts in (2, EXAMPLES):
        gradient = cached(bad, lambda outputs: (jnp.sum(outputs.pooled["odd"]), {}), parts)
        with pytest.raises(ValueError, match="output pooled/odd .*leading dimension"):
            jax.eval_shape(gradient, params, state, batch, jax.random.key(0))


# VL-JEPA, with all its losses.


def vl_jepa_result(way, devices, dtype, pairs):
    config = vl_jepa.tiny(**{"dtype": dtype, "loss.temperature": 0.5})
    method = methods.from_config(config)
    batch = jax.tree.map(lambda *x: np.concatenate(x), vl_jepa.batch(0), vl_jepa.batch(1))
    if pairs == 1:
        step = vl_jepa.PAIRS
        texts = {name: batch[name] for name in ("query", "text")}
        batch |= jax.tree.map(lambda x: x[::step], texts)
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda p: random.normal(0, 0.2, p.shape).astype(dtype), params)

    def represent(params, state, batch, rng):
        return method.represent(params, None, state, batch, rng)

    gradient = way(represent, lambda outputs: method.objective(outputs, jnp.int32(3)))
    return result(gradient, params, state, batch, devices)


def test_vl_jepa_with_one_text_a_clip():
    want = vl_jepa_result(whole, 1, "float32", 1)
    got = vl_jepa_result(functools.partial(cached, parts=8), 1, "float32", 1)
    assert distance(got.gradients, want.gradients) < 1e-6
    # A parameter's own rounding is that of a cut over devices.
    assert_equal(got, want, 5e-6)


@pytest.mark.slow
def test_vl_jepa_with_pairs_on_a_mesh_is_equal_to_the_last_digits():
    with jax.enable_x64(True):
        want = vl_jepa_result(whole, 1, "float64", 2)
        got = vl_jepa_result(functools.partial(cached, parts=2), 8, "float64", 2)
        assert_equal(got, want, 1e-11)


# The train step.


def test_the_train_step_takes_it_by_a_flag():
    kwargs = {
        "model__noise": 0.0,
        "model__ema": True,
        "ema": configs.default_ema_config().to_dict(),
        "model__frozen": ("encoder/bias",),
        "steps": 6,
        "bad_steps": (3,),
    }
    flags = {"train__accumulate": 4, "train__gradient_cache": True}
    want, plain = run(**kwargs)
    got, history = run(**kwargs, **flags, mesh__fsdp=2, mesh__tensor=2, devices=8)
    for name in ("loss", "gradient_norm", "mean_error", "skipped"):
        np.testing.assert_allclose(series(history, name), series(plain, name), rtol=2e-5)
    assert got.skipped == 1 and got.method_state["seen"] == want.method_state["seen"]
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), got.params, want.params
    )
    assert_same(got.params["encoder"]["bias"], want.params["encoder"]["bias"])


class Pairs(toy.Toy):
    """Texts are copies of their clips, P a clip: the error is 0 where none are torn apart."""

    def represent(self, params, target_params, state, batch, rng):
        kernel = params["encoder"]["kernel"]
        clips = jnp.repeat(batch["x"], batch["y"].shape[0] // batch["x"].shape[0], axis=0)
        return Outputs(pooled={"prediction": clips @ kernel, "target": batch["y"] @ kernel}), state


@pytest.mark.parametrize("flags", [{}, {"train__gradient_cache": True}], ids=str)
def test_pairs_of_a_clip_stay_with_it(flags):
    config = configs.resolve(toy.config(train__accumulate=2, **flags))
    mesh, method = meshes.make_mesh(config.mesh, jax.devices()[:4]), Pairs(config)
    clips = np.random.default_rng(0).normal(size=(16, toy.IN)).astype(np.float32)
    batch = {"x": clips, "y": np.repeat(clips, 2, axis=0)}
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    step = loop.make_step(config, method)
    start = Initializer(method, step.optimizer, mesh, spec, seed=0)
    program = lower(step, mesh, start.shapes, spec).compile(compiler_options=QUICK)
    _, metrics = program(start.create(), put(batch, meshes.batch_sharding(mesh)))
    assert metrics["mean_error"] < 1e-6


def test_the_flag_reaches_the_step():
    config = configs.resolve(toy.config(train__accumulate=2, train__gradient_cache=True))
    assert loop.make_step(config, toy.Toy(config)).gradient_cache
    config.train.gradient_cache = False
    assert not loop.make_step(config, toy.Toy(config)).gradient_cache


def test_it_compiles_once():
    traces = []

    def counted(*arguments):
        traces.append(arguments)
        return represent(*arguments)

    params, state, batch = problem()
    jitted = jax.jit(cached(counted, objective, 4))
    first = jitted(params, state, batch, jax.random.key(0))
    before = len(traces)
    for seed in (1, 2):
        again = jitted(first.gradients, state, batch, jax.random.key(seed))
    assert len(traces) == before and jitted._cache_size() == 1
    assert again.loss != first.loss


# Memory.

ROWS, TOKENS, WIDTH, LAYERS = 64, 64, 32, 8


def deep(params, state, batch, rng):
    """An encoder whose activations are nearly all the memory there is: many tokens, few weights."""

    def layer(x, kernels):
        return x + jnp.tanh(x @ kernels[0]) @ kernels[1], None

    x, _ = jax.lax.scan(layer, batch["clip"], params["layers"])
    return Outputs(pooled={"clip": x.mean(axis=1), "text": batch["text"] @ params["head"]}), state


def contrast(outputs):
    logits = outputs.pooled["clip"] @ outputs.pooled["text"].T
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diag(logits)), {}


def temporaries(gradient):
    """Bytes of the compiled program beside its arguments and results."""
    params = {"layers": (LAYERS, 2, WIDTH, WIDTH), "head": (WIDTH, WIDTH)}
    batch = {"clip": (ROWS, TOKENS, WIDTH), "text": (ROWS, WIDTH)}
    params, batch = (
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        for shapes in (params, batch)
    )
    lowered = jax.jit(gradient).lower(params, {}, batch, jax.random.key(0))
    return lowered.compile(compiler_options=QUICK).memory_analysis().temp_size_in_bytes


def test_an_eighth_of_the_activations():
    full = temporaries(whole(deep, contrast))
    weights = 4 * (2 * LAYERS + 1) * WIDTH**2
    outputs = 4 * 2 * ROWS * WIDTH
    assert full > 20 * 4 * ROWS * TOKENS * WIDTH  # several activations a layer
    # Beside them: gradients of one micro-batch and their sum; outputs and their gradients.
    for parts in (8, 16):
        used = temporaries(cached(deep, contrast, parts))
        assert used < full / parts + 2 * weights + 4 * outputs
    assert used < full / 8
