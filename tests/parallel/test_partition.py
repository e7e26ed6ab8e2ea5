import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jepa.errors import UserError
from jepa.parallel import partition
from jepa.parallel.mesh import make_mesh

BLOCK = [
    ("norm/scale", ("layers", "embed")),
    ("mlp/up/kernel", ("layers", "embed", "mlp")),
    ("mlp/up/bias", ("layers", "mlp")),
]
TABLE = [*partition.prefixed("encoder/blocks", BLOCK), ("head/kernel", ("embed", "shared"))]


def tree(width=8, hidden=16, depth=3):
    f = jax.ShapeDtypeStruct
    up = {"kernel": f((depth, width, hidden), "float32"), "bias": f((depth, hidden), "float32")}
    blocks = {"norm": {"scale": f((depth, width), "float32")}, "mlp": {"up": up}}
    return {"encoder": {"blocks": blocks}, "head": {"kernel": f((width, 5), "float32")}}


def test_specs_follow_the_rules():
    got = partition.specs(TABLE, tree())
    up = got["encoder"]["blocks"]["mlp"]["up"]
    assert up["kernel"] == P(None, "fsdp", "tensor")
    assert up["bias"] == P(None, "tensor")
    assert got["head"]["kernel"] == P("fsdp", None)


def test_shardings_cut_arrays():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree())
    placed = jax.device_put(params, partition.shardings(mesh, TABLE, params))
    kernel = placed["encoder"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 4, 8)


def test_first_row_decides():
    table = [("a", ("embed",)), ("[ab]", (None,))]
    got = partition.specs(table, {"a": np.zeros(2), "b": np.zeros(2)})
    assert got == {"a": P("fsdp"), "b": P(None)}


def test_prefix_is_literal_and_pattern_is_grouped():
    table = partition.prefixed("x.y", [("a|b", ())])
    with pytest.raises(partition.PartitionError, match="b"):
        partition.specs(table, {"x.y": {"a": np.float32(0)}, "b": np.float32(0)})
    with pytest.raises(partition.PartitionError, match="xzy/a"):
        partition.specs(table, {"xzy": {"a": np.float32(0)}})


@pytest.mark.parametrize(
    ("table", "params", "words"),
    [
        ([], {"a": {"b": np.zeros((2, 3))}}, ["a/b", "(2, 3)", "add a row"]),
        ([("a", (None,)), ("c.*", ())], {"a": np.zeros(2)}, ["'c.*'", "matches no parameter"]),
        ([(".*", (None,)), ("a", (None,))], {"a": np.zeros(2)}, ["'a'", "earlier rows match a"]),
        ([("a", ("embed",))], {"a": np.zeros((2, 3))}, ["a", "(2, 3)", "layers"]),
        ([("a", ("width",))], {"a": np.zeros(2)}, ["'width'", "embed"]),
        ([("a", ("embed", "embed"))], {"a": np.zeros((2, 2))}, ["a", "(2, 2)", "'fsdp'", "None"]),
        # A pattern must match the whole path, not a part of it.
        ([("b", (None,))], {"a": {"b": np.zeros(2)}}, ["a/b", "matches no row"]),
    ],
)
def test_tables_that_do_not_fit(table, params, words):
    with pytest.raises(partition.PartitionError) as caught:
        partition.specs(table, params)
    for word in words:
        assert word in str(caught.value)


def test_dimension_that_does_not_divide():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    with pytest.raises(UserError) as caught:
        partition.shardings(mesh, TABLE, tree(width=6))
    for word in ["encoder/blocks/", "(3, 6", "dimension 1", "mesh.fsdp=4", "multiple of 4"]:
        assert word in str(caught.value)


def test_constrain_is_free_without_a_mesh_or_with_one_device():
    x = jnp.ones((4, 6, 2))
    assert partition.constrain(x, "batch", "tokens", None) is x
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        assert partition.constrain(x, "batch", "tokens", None) is x


def test_constrain_checks_names_and_shapes():
    x = jnp.ones((4, 6))
    with pytest.raises(partition.PartitionError, match="'depth'"):
        partition.constrain(x, "batch", "depth")
    with pytest.raises(partition.PartitionError, match="1 names"):
        partition.constrain(x, "batch")
    with jax.set_mesh(make_mesh({"data": 8})), pytest.raises(UserError, match="mesh.data=8"):
        partition.constrain(x, "batch", None)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = partition.constrain(x, "batch", "tokens", None)
        h = partition.constrain(nn.Dense(8)(x), "batch", "tokens", "mlp")
        return x + nn.Dense(x.shape[-1])(nn.gelu(h)), None


def scanned():
    layer = nn.remat(Layer, prevent_cse=False)
    return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()


def test_constrain_in_scan_remat_and_grad():
    model = scanned()
    # Seven tokens, which the two pieces of the context do not divide.
    x = jax.random.normal(jax.random.key(0), (4, 7, 4))
    params = model.init(jax.random.key(1), x, None)

    def loss(params, x):
        return jnp.sum(jnp.sin(model.apply(params, x, None)[0]))

    wanted = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 2, "context": 2})):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        got = step(params, x)
        assert "sharding_constraint" in step.lower(params, x).as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)


def test_constrain_drops_axes_that_are_manual():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})

    def body(x):
        return partition.constrain(x, "batch", "mlp") * 2

    with jax.set_mesh(mesh):
        both = jax.shard_map(
            body, in_specs=P(("data",)), out_specs=P(("data",)), axis_names={"data"}
        )
        out = jax.jit(both)(jnp.arange(32.0).reshape(8, 4))
    np.testing.assert_array_equal(out, 2 * np.arange(32.0).reshape(8, 4))
