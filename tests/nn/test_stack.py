from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.nn import attention, blocks, mlp, norms, rotary, stack
from jepa.nn.linear import matrix_init

WIDTH, DEPTH = 16, 3


def quick(function):
    """Programs that run for a millisecond need no optimising compiler."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def make(block=blocks.PreNormBlock, heads=4, kv_heads=2, **options):
    parts = {
        "attention": partial(attention.Attention, heads=heads, kv_heads=kv_heads),
        "mlp": partial(mlp.GeluMlp, hidden=24),
        "norm": norms.LayerNorm,
    }
    return stack.Stack(partial(block, **parts), DEPTH, **options)


@pytest.fixture(scope="module")
def inputs():
    x = jax.random.normal(jax.random.key(1), (2, 6, WIDTH))
    return x, rotary.rotary_1d(jnp.arange(6.0), WIDTH // 4)


@pytest.fixture(scope="module")
def variables(inputs):
    return quick(make().init)(jax.random.key(0), inputs[0], rotary=inputs[1])


def one_by_one(variables, x, tables):
    """The blocks applied by hand, each with its slice of the parameters."""
    block = make().block(parent=None)
    kept = [x]
    for i in range(DEPTH):
        params = jax.tree.map(lambda p, i=i: p[i], variables["params"]["blocks"])
        kept.append(block.apply({"params": params}, kept[-1], rotary=tables))
    return kept


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("taps", [(), (0, 2), (1, 2, 3)])
def test_output_and_taps_are_those_of_the_blocks_one_by_one(inputs, variables, scan, taps):
    x, tables = inputs
    kept = one_by_one(variables, x, tables)
    y, tapped = quick(partial(make(scan=scan).apply, taps=taps))(variables, x, rotary=tables)
    np.testing.assert_allclose(y, kept[-1], atol=1e-5)
    assert len(tapped) == len(taps)
    for number, tokens in zip(taps, tapped, strict=True):
        np.testing.assert_allclose(tokens, kept[number], atol=1e-5)


def test_every_remat_policy_gives_the_same_gradient_from_the_same_tree(inputs, variables):
    x, tables = inputs

    def gradient(**options):
        module = make(**options)
        assert jax.tree.structure(
            jax.eval_shape(module.init, jax.random.key(0), x, rotary=tables)
        ) == jax.tree.structure(variables)
        return quick(
            jax.grad(lambda v: jnp.sum(module.apply(v, x, taps=(1,), rotary=tables)[0] ** 2))
        )(variables)

    expected = gradient()
    for options in (
        {"remat": "full"},
        {"remat": "dots", "scan": False},
        {"remat": "attention", "scan": False},
    ):
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), gradient(**options), expected
        )


def test_policies_keep_less_and_less_for_the_backward_pass(inputs, variables):
    x, tables = inputs

    def kept(remat, scan):
        def forward(v):
            return make(remat=remat, scan=scan).apply(v, x, rotary=tables)[0]

        residuals = jax.eval_shape(lambda v: jax.vjp(forward, v)[1], variables)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    for scan in (True, False):
        none, dots, attention_only, full = (
            kept(name, scan) for name in ("none", "dots", "attention", "full")
        )
        assert none > dots > attention_only > full
        # The attention's result: as many numbers as the tokens, in each block.
        assert attention_only - full == DEPTH * x.size


@pytest.mark.parametrize("inputs", [1024, 4096])
def test_published_widths_start_at_the_published_deviation(inputs):
    kernel = matrix_init(jax.random.key(0), (inputs, 64))
    np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.02)


def test_residual_outputs_start_smaller_with_depth():
    module = make(heads=4, kv_heads=None)
    x = jnp.zeros((1, 2, WIDTH))
    draw = jax.vmap(lambda k: module.init(k, x)["params"]["blocks"])
    params = quick(draw)(jax.random.split(jax.random.key(0), 64))
    for name in ("attention", "mlp"):
        kernel = np.asarray(params[name]["out"]["kernel"]).swapaxes(0, 1)
        # 0.02 at 1024 inputs; with fewer, as much more as keeps the outputs' deviation.
        inputs = np.prod(kernel.shape[2:-1])
        want = 0.02 * np.sqrt(1024 / inputs) / np.sqrt([2, 4, 6])
        np.testing.assert_allclose(kernel.reshape(DEPTH, -1).std(1), want, rtol=0.03)
    inward = np.asarray(params["mlp"]["in"]["kernel"]).swapaxes(0, 1).reshape(DEPTH, -1)
    np.testing.assert_allclose(inward.std(1), 0.02 * np.sqrt(1024 / WIDTH), rtol=0.03)
    assert not np.any(params["mlp"]["out"]["bias"])
    # No two layers start alike.
    assert np.abs(inward[0] - inward[1]).max() > 0.02


def test_post_norm_ends_in_a_norm(inputs):
    module = make(blocks.PostNormBlock)
    x, tables = inputs
    y, _ = quick(lambda: module.init_with_output(jax.random.key(0), x, rotary=tables))()[0]
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


@pytest.mark.parametrize("taps", [(2, 1), (1, 1), (4,), (-1,)])
def test_taps_out_of_order_or_range_are_refused(inputs, variables, taps):
    with pytest.raises(UserError, match="taps are"):
        make().apply(variables, inputs[0], taps=taps)


def test_unknown_policies_and_heads_are_refused(inputs):
    with pytest.raises(UserError, match="remat is 'some'"):
        make(remat="some").init(jax.random.key(0), inputs[0])
    with pytest.raises(UserError, match="kv_heads=3"):
        make(kv_heads=3).init(jax.random.key(0), inputs[0])
    with pytest.raises(UserError, match="width is 16"):
        make(heads=5, kv_heads=None).init(jax.random.key(0), inputs[0])


def test_each_layer_gets_its_kind_of_what_is_shared(inputs, variables):
    x, tables = inputs
    near = jnp.abs(jnp.arange(6)[:, None] - jnp.arange(6)) <= 1
    masks = jnp.stack([near, jnp.ones((6, 6), bool)])[:, None, None]
    both = jax.tree.map(lambda table: jnp.stack([table, table]), tables)
    kinds = (0, 1, 0)
    block = make().block(parent=None)
    expected = x
    for i, kind in enumerate(kinds):
        params = jax.tree.map(lambda p, i=i: p[i], variables["params"]["blocks"])
        expected = block.apply({"params": params}, expected, rotary=tables, mask=masks[kind])
    for scan in (True, False):
        module = make(scan=scan)
        got, _ = quick(partial(module.apply, kinds=kinds))(variables, x, rotary=both, mask=masks)
        np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(ValueError, match="2 kinds for 3 layers"):
        make().apply(variables, x, kinds=(0, 1), rotary=both, mask=masks)
