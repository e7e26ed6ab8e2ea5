import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jepa.parallel.mesh import make_mesh
from jepa.parallel.rows import Rows, rows

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("count", "axes"),
    [
        (16, ("data", "fsdp", "tensor")),
        (12, ("data", "fsdp")),  # 8 does not divide 12, 4 does
        (6, ()),
    ],
)
def test_rows_are_cut_over_as_many_axes_as_divide_them(count, axes):
    with jax.set_mesh(make_mesh(MESH)):
        found = rows(count)
    assert found.axes == axes and found.pieces == 2 ** len(axes)


def test_nothing_is_cut_without_a_mesh_and_by_axes_that_are_worked_by_hand():
    assert rows(8) == Rows()
    found = []
    with jax.set_mesh(make_mesh(MESH)):
        jax.jit(
            jax.shard_map(
                lambda x: found.append(rows(8)) or x,
                in_specs=PartitionSpec("data"),
                out_specs=PartitionSpec("data"),
                axis_names={"data"},
            )
        )(jnp.arange(8))
    assert found[0].axes == ("fsdp", "tensor")


def test_what_crosses_devices():
    x = np.arange(32.0).reshape(16, 2)

    def on_pieces(x):
        cut = rows(16)
        whole = PartitionSpec()

        def local(x):
            return {
                "next": cut.pass_on(x),
                "gathered": cut.gather(x),
                "summed": cut.sum(x),
                "largest": cut.max(x),
                "scattered": cut.scatter_sum(cut.gather(x)),
                "index": jnp.atleast_1d(cut.index()),
            }

        out = dict.fromkeys(("gathered", "summed", "largest"), whole)
        out |= dict.fromkeys(("next", "scattered", "index"), cut.spec)
        return cut.map(local, cut.spec, out)(x)

    with jax.set_mesh(make_mesh(MESH)):
        got = jax.jit(on_pieces)(x)
    pieces = x.reshape(8, 2, 2)
    np.testing.assert_array_equal(got["next"], np.roll(x, -2, axis=0))
    np.testing.assert_array_equal(got["gathered"], x)
    np.testing.assert_array_equal(got["summed"], pieces.sum(0))
    np.testing.assert_array_equal(got["largest"], pieces.max(0))
    np.testing.assert_array_equal(got["scattered"], 8 * x)
    np.testing.assert_array_equal(got["index"], np.arange(8))
    # The same function on one piece.
    alone = jax.jit(on_pieces)(x)
    for name in ("next", "gathered", "summed", "largest", "scattered"):
        np.testing.assert_array_equal(alone[name], x)
