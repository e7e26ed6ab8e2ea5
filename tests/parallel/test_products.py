"""The arithmetic of traced programs, against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from jepa.parallel import products
from jepa.parallel.mesh import make_mesh

LAYERS, ROWS, WIDTH = 5, 3, 8
ONE = 2 * ROWS * WIDTH * WIDTH


def stack(remat):
    def run(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        layer = jax.checkpoint(layer) if remat else layer
        return jax.lax.scan(layer, x, weights)[0].sum()

    return run


@pytest.mark.parametrize("remat, passes", [(False, 3), (True, 4)])
def test_a_scanned_stack(remat, passes):
    weights, x = jnp.zeros((LAYERS, WIDTH, WIDTH)), jnp.zeros((ROWS, WIDTH))
    forward = jax.make_jaxpr(stack(remat))(weights, x)
    assert products.flops(forward) == LAYERS * ONE
    backward = jax.make_jaxpr(jax.grad(stack(remat), argnums=(0, 1)))(weights, x)
    assert products.flops(backward) == passes * LAYERS * ONE


def test_a_convolution_and_a_batch_of_products():
    def convolve(x, w):
        return jax.lax.conv(x, w, (1, 1), "VALID")

    x, w = jnp.zeros((2, 3, 9, 9)), jnp.zeros((5, 3, 3, 3))
    assert products.flops(jax.make_jaxpr(convolve)(x, w)) == 2 * (2 * 5 * 7 * 7) * 3 * 9
    a, b = jnp.zeros((4, 6, 7)), jnp.zeros((4, 7, 8))
    assert products.flops(jax.make_jaxpr(jnp.matmul)(a, b)) == 2 * 4 * 6 * 7 * 8


def test_all_devices_of_a_shard_map_and_the_costlier_branch():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    rows = PartitionSpec(("data", "fsdp"))

    def branch(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x.T @ x, lambda x: x, x)

    run = jax.shard_map(branch, mesh=mesh, in_specs=rows, out_specs=rows)
    found = products.flops(jax.make_jaxpr(run)(jnp.zeros((8 * ROWS, WIDTH))))
    assert found == 8 * 2 * (2 * ROWS * ROWS * WIDTH)


def test_a_kernel_over_its_grid():
    def kernel(x, y, o):
        o[...] = x[...] @ y[...]

    def run(x, y):
        spec = pl.BlockSpec((8, 16), lambda i: (i, 0))
        return pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((32, 4), jnp.float32),
            grid=(4,),
            in_specs=[spec, pl.BlockSpec((16, 4), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((8, 4), lambda i: (i, 0)),
            interpret=True,
        )(x, y)

    found = products.flops(jax.make_jaxpr(run)(jnp.zeros((32, 16)), jnp.zeros((16, 4))))
    assert found == 2 * 32 * 16 * 4
