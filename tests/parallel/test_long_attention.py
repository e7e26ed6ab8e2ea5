"""Attention of long sequences: the TPU kernel interpreted, and XLA with a few rows at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import AxisType
from test_attention import reference

from jepa.nn.stack import REMAT
from jepa.parallel import attention, einsum, splash
from jepa.parallel.mesh import make_mesh

QUICK = {"xla_backend_optimization_level": 0}
# Odd numbers of tokens and of channels; groups of heads.
QUERIES, KEYS, CHANNELS = 21, 137, 10


def arrays(batch=2, heads=4, kv_heads=2, n=QUERIES, m=KEYS, dim=CHANNELS, dtype="float32"):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(batch, heads, n, dim)) * 2
    k, v = (rng.normal(size=(batch, kv_heads, m, dim)) for _ in "kv")
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v))


def hidden(batch=2, m=KEYS):
    """Each example sees keys of its own, which are no first part."""
    return jnp.asarray(np.random.default_rng(1).random((batch, 1, 1, m)) < 0.5)


def outcome(implementation, given, mask, axes=None):
    """The result and the gradients of a weighted sum of it."""
    weights = jnp.asarray(np.random.default_rng(2).normal(size=given[0].shape), given[0].dtype)

    def total(q, k, v):
        out = attention.attend(q, k, v, mask=mask, dtype=q.dtype, implementation=implementation)
        return jnp.sum(weights * out), out

    program = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True), compiler_options=QUICK)
    if axes is None:
        return program(*given)
    with jax.set_mesh(make_mesh(axes, jax.devices()[: int(np.prod(list(axes.values())))])):
        return program(*given)


def agree(got, wanted, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axes", [None, {"data": 2, "tensor": 2, "context": 2}], ids=str)
def test_the_kernel_gives_what_einsum_gives(masked, axes):
    given, mask = arrays(), hidden() if masked else None
    wanted = outcome("einsum", given, mask)
    np.testing.assert_allclose(wanted[1], reference(*given, mask), atol=1e-5)
    agree(outcome("splash", given, mask, axes), wanted, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "axes", [None, {"fsdp": 2, "context": 4}, {"tensor": 2, "context": 4}], ids=str
)
@pytest.mark.parametrize(("n", "m"), [(1, 300), (129, 128), (640, 640), (1100, 1300)])
def test_the_kernel_gives_what_einsum_gives_at_any_size(kv_heads, axes, n, m):
    given, mask = arrays(kv_heads=kv_heads, n=n, m=m, dim=16), hidden(m=m)
    agree(outcome("splash", given, mask, axes), outcome("einsum", given, mask), 4e-6)


@pytest.mark.parametrize("axes", [None, {"data": 2, "tensor": 2, "context": 2}], ids=str)
def test_rows_at_a_time_give_what_einsum_gives(axes, monkeypatch):
    with jax.enable_x64(True):
        given = arrays(dtype="float64")
        mask = jnp.asarray(np.random.default_rng(3).random((1, 1, QUERIES, KEYS)) < 0.5)
        wanted = outcome("einsum", given, mask)
        # Four rows of one example's two heads at a time, so that blocks do not divide 21.
        monkeypatch.setattr(einsum, "BLOCK_BYTES", 4 * 2 * KEYS * 8)
        agree(outcome("blockwise", given, mask, axes), wanted, 1e-14)


def test_rows_at_a_time_never_form_the_matrix(monkeypatch):
    monkeypatch.setattr(einsum, "BLOCK_BYTES", 4 * 2**20)
    given = arrays(1, 1, 1, 4096, 4096, 8)
    program = jax.jit(
        jax.grad(lambda *a: einsum.blockwise(*a, None).sum(), (0, 1, 2)), compiler_options=QUICK
    )
    memory = program.lower(*given).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4096 * 4096 * 4 / 2


def test_a_query_that_sees_nothing_gets_something_finite():
    given = arrays(n=8, m=128)
    mask = jnp.zeros((2, 1, 1, 128), bool).at[0].set(True)
    gradients, out = outcome("splash", given, mask)
    assert all(np.isfinite(x).all() for x in (out, *gradients))


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("full", []), ("attention", ["10", "128"]), ("dots_attention", ["10", "128"])],
)
def test_a_policy_keeps_what_the_kernel_needs_to_go_back(policy, kept, capsys):
    def layer(q, k, v):
        out = attention.attend(q, k, v, dtype="float32", implementation="splash")
        return jnp.sum(jnp.sin(out))

    print_saved_residuals(jax.checkpoint(layer, policy=REMAT[policy]), *arrays(n=128, m=128))
    # The result `[2, 4, 128, 10]`, and a number for each of its rows.
    found = re.findall(r"f32\[2,4,128(?:,(10))?\] output of", capsys.readouterr().out)
    assert sorted(x or "128" for x in found) == kept


def chosen(platform, shape, mask=None, keys=None, dtype="bfloat16", axes=(1, 1, 1, 1)):
    device = jax.sharding.Mesh(jax.devices()[:1], "data").abstract_mesh.abstract_device
    device = type(device)(device_kind="any", num_cores=1, platform=platform)
    names = ("data", "fsdp", "tensor", "context")
    mesh = jax.sharding.AbstractMesh(axes, names, (AxisType.Auto,) * 4, abstract_device=device)
    q = jax.ShapeDtypeStruct(shape, dtype)
    k = jax.ShapeDtypeStruct((shape[0], shape[1], keys or shape[2], shape[3]), dtype)
    with jax.sharding.use_abstract_mesh(mesh):
        return attention.chosen(q, k, mask)


def test_it_is_chosen_by_platform_size_and_mask():
    long = (1, 22, 18432, 64)
    of_keys = jax.ShapeDtypeStruct((1, 1, 1, 18432), jnp.bool_)
    of_both = jax.ShapeDtypeStruct((1, 1, 18432, 18432), jnp.bool_)
    assert chosen("tpu", long) == "splash"
    assert chosen("tpu", long, of_keys) == "splash"
    assert chosen("tpu", long, of_both) == "blockwise"
    assert chosen("tpu", long, dtype="float64") == "blockwise"
    assert chosen("cpu", long) == "blockwise"
    # Local views of LeJEPA, and the one query of an attentive probe.
    assert chosen("tpu", (256, 16, 37, 64)) == "einsum"
    assert chosen("tpu", (8, 16, 1, 64), keys=18432) == "einsum"
    # What counts is a device's part: 8 clips of 512 tokens, and one of them.
    clips = (8, 16, 512, 64)
    assert chosen("tpu", clips) == "splash"
    assert chosen("tpu", clips, axes=(8, 1, 1, 1)) == "einsum"
    assert chosen("cpu", clips) == "einsum"


def test_blocks_waste_little():
    sizes = {n: splash.block(n) for n in (100, 128, 577, 2048, 2049, 4608, 18432)}
    assert all(size % 128 == 0 for size in sizes.values())
    assert sizes[100] == sizes[128] == 128
    assert sizes[2048] == sizes[18432] == 1024
    for count in range(1, 5000, 37):
        size = splash.block(count)
        assert -(-count // size) * size < 1.25 * count + 128


def test_what_the_kernel_cannot_do_is_refused():
    q, k, v = arrays()
    with pytest.raises(ValueError, match="masks of keys"):
        attention.attend(
            q,
            k,
            v,
            mask=jnp.ones((1, 1, QUERIES, KEYS), bool),
            dtype="float32",
            implementation="splash",
        )
