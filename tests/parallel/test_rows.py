import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jepa.losses.barlow_twins import barlow_twins
from jepa.losses.multivariate import bhep
from jepa.losses.vicreg import vicreg
from jepa.parallel.mesh import make_mesh
from jepa.parallel.rows import Rows, constrain_rows, rows

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
    by_hand("tensor", lambda x: found.append(rows(8)) or x)
    assert found[0].axes == ("data", "fsdp")


def by_hand(axis, function):
    """Runs a function of 8 numbers inside a `shard_map` over one axis."""
    cut = PartitionSpec(axis)
    with jax.set_mesh(make_mesh(MESH)):
        work = jax.shard_map(function, in_specs=cut, out_specs=cut, axis_names={axis})
        jax.jit(work)(jnp.arange(8))


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_a_batch_that_is_cut_by_hand_is_refused(axis):
    for function in (lambda x: rows(8) and x, constrain_rows):
        with pytest.raises(ValueError, match=f"inside a jax.shard_map over {axis}"):
            by_hand(axis, function)


@pytest.mark.parametrize(
    "loss",
    [lambda x: vicreg(x, 2 * x)[0], lambda x: barlow_twins(x, x[::-1])[0], bhep],
    ids=["vicreg", "barlow_twins", "bhep"],
)
def test_losses_of_rows_that_no_mesh_divides(loss):
    # 4 does not divide 6: every device does all the work.
    x = np.random.default_rng(0).standard_normal((6, 3)).astype("float32")
    wanted = jax.jit(jax.value_and_grad(loss))(x)
    with jax.set_mesh(make_mesh(MESH)):
        got = jax.jit(jax.value_and_grad(loss))(x)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


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
