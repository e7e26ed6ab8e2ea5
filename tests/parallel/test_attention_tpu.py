"""Attention compiled for TPUs that are not there: the kernel, and what crosses chips for it."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from jepa.models.vit import VideoTransformer
from jepa.parallel import attention, topology
from jepa.parallel.mesh import batch_sharding
from jepa.parallel.partition import shardings

pytestmark = pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")

TOKENS = 1536


def gradient(mesh, shape, mask=None, kv_heads=None):
    """The text of attention's gradient on a mesh, batch and tokens cut."""

    def total(q, k, v, mask):
        out = attention.attend(q, k, v, mask=mask, dtype="bfloat16", implementation="splash")
        return jnp.sum(out.astype(jnp.float32) ** 2)

    # An argument, unlike what is inside of a program, is cut in equal parts only.
    tokens = None if shape[2] % mesh.shape["context"] else "context"
    cut = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), "tensor", tokens))
    q = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=cut)
    k = jax.ShapeDtypeStruct((shape[0], kv_heads or shape[1], *shape[2:]), q.dtype, sharding=cut)
    if mask is not None:
        mask = jax.ShapeDtypeStruct(mask, jnp.bool_, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        return topology.compile_for_tpu(jax.grad(total, (0, 1, 2)), q, k, k, mask).as_text()


def kernels(text):
    return text.count('custom_call_target="tpu_custom_call"')


def test_keys_are_gathered_and_their_gradients_scattered():
    mesh = topology.tpu_mesh("v5e:2x2", {"data": 2, "context": 2})
    text = gradient(mesh, (2, 2, TOKENS, 64))
    assert kernels(text) == 3
    # Nothing is as large as the matrix, or as a device's part of it.
    found = re.findall(r"\b(?:bf16|f32|s32|pred)\[([\d,]+)\]", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in found]
    assert max(sizes) < TOKENS * TOKENS / 2
    assert len(re.findall(r"= bf16\S* all-gather(?:-start)?\(", text)) >= 2
    assert len(re.findall(r"(?:= bf16\S* reduce-scatter\(|all-reduce-scatter)", text)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 80, 88, 104, 128])
@pytest.mark.parametrize("topology_name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_kernel_compiles_for_every_chip_and_head(topology_name, head_dim):
    mesh = topology.tpu_mesh(topology_name, {"fsdp": 2, "context": 2})
    # Neither a multiple of 128 nor even: what is seen of a masked clip.
    text = gradient(mesh, (2, 4, 1155, head_dim), mask=(2, 1, 1, 1155), kv_heads=2)
    assert kernels(text) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "count"), [("attention", 3), ("full", 4)])
def test_a_scanned_encoder_runs_the_kernel_once_a_layer_and_pass(remat, count):
    mesh = topology.tpu_mesh("v5e:2x2", {"fsdp": 2, "context": 2})
    model = VideoTransformer(width=256, depth=4, heads=4, remat=remat, dtype="bfloat16")
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 2, 16, 16, 3)))["params"], jax.random.key(0)
    )
    params = jax.tree.map(
        lambda x, cut: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut),
        shapes,
        shardings(mesh, model.partition_table(), shapes),
    )
    # 16 tubelets of 12 x 12 patches; each of the two devices of the context has half.
    video = jax.ShapeDtypeStruct((2, 32, 192, 192, 3), jnp.bfloat16, sharding=batch_sharding(mesh))

    def loss(params, video):
        return jnp.mean(jnp.abs(model.apply({"params": params}, video).astype(jnp.float32)))

    with jax.set_mesh(mesh):
        text = topology.compile_for_tpu(jax.grad(loss), params, video).as_text()
    assert kernels(text) == count
    # Matrices are gathered over fsdp while something else is worked on.
    assert "async_collective_fusion" in text or "all-gather-start" in text
