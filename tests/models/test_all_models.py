"""What holds for every model: types, partition tables, meshes, FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import CASES, cast
from model_helpers import draw, quick, run

from jepa.models import flops
from jepa.models.vit import VideoTransformer
from jepa.parallel import mesh as meshes
from jepa.parallel import partition


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_every_parameter_has_its_row_and_every_row_a_parameter(case):
    module, inputs, _ = case
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    specs = partition.specs(module.partition_table(), shapes)
    # The big matrices are cut: no parameter of two dimensions and more is wholly replicated.
    for leaf, spec in zip(
        jax.tree.leaves(shapes),
        jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)),
        strict=True,
    ):
        if leaf.ndim > 2 and leaf.size > 1000:
            assert any(axis is not None for axis in spec)


@pytest.mark.parametrize(
    ("dtype", "param_dtype"), [("bfloat16", "float32"), ("float64", "float64")]
)
def test_every_type_all_the_way_through(case, dtype, param_dtype):
    module, inputs, _ = case
    with jax.enable_x64(dtype == "float64"):
        module = module.clone(dtype=dtype, param_dtype=param_dtype)
        inputs = cast(inputs, dtype)

        def forward(variables):
            return module.apply(variables, *inputs)

        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(param_dtype)}
        out = jax.eval_shape(forward, shapes)
        assert out.dtype in (jnp.dtype(dtype), jnp.promote_types(dtype, jnp.float32))
        if dtype == "float64":
            # Nothing on the way may be narrower: a float32 in the middle would lose 1e-8.
            text = str(jax.make_jaxpr(forward)(shapes))
            assert "f32" not in text
            assert "bf16" not in text


def test_bfloat16_is_near_float32():
    module, inputs, _ = CASES["vit"]
    variables = draw(module, *inputs, scale=0.05)
    exact = run(module, variables, *inputs)
    rough = run(module.clone(dtype="bfloat16"), variables, *inputs)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "predictor, narrow table",
        pytest.param("gemma", marks=pytest.mark.slow),
        pytest.param("image tower, gated", marks=pytest.mark.slow),
    ],
)
def test_on_a_mesh_as_on_one_device(name):
    module, inputs, _ = CASES[name]
    params = draw(module, *inputs, scale=0.1)["params"]

    def loss(params, *inputs):
        return jnp.sum(module.apply({"params": params}, *inputs) ** 2)

    step = jax.value_and_grad(loss)
    value, gradient = quick(step)(params, *inputs)
    mesh = meshes.make_mesh({"data": 1, "fsdp": 2, "tensor": 2, "context": 2})
    with jax.set_mesh(mesh):
        table = module.partition_table()
        shards = jax.device_put(params, partition.shardings(mesh, table, params))
        cut_inputs = jax.device_put(inputs, meshes.batch_sharding(mesh))
        cut_value, cut_gradient = quick(step)(shards, *cut_inputs)
    np.testing.assert_allclose(cut_value, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), cut_gradient, gradient
    )


def products(jaxpr, times=1):
    """The FLOPs of all matrix products in a jaxpr, loops counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = np.prod([shape[d] for d in contracted])
            total += times * 2 * size * equation.outvars[0].aval.size
        inner = times * equation.params.get("length", 1)
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                total += products(value.jaxpr, inner)
            elif hasattr(value, "eqns"):
                total += products(value, inner)
    return total


def test_flops_are_those_of_the_program_s_matrix_products(case):
    module, inputs, count = case
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    jaxpr = jax.make_jaxpr(module.apply)(shapes, *inputs)
    batch = inputs[0].shape[0]
    assert products(jaxpr.jaxpr) == pytest.approx(batch * count(module), rel=1e-9)


def test_flops_agree_with_the_compiler_s_count_of_one_layer():
    module = VideoTransformer(width=256, depth=1, heads=4, patch=8, scan=False)
    video = jnp.zeros((1, 4, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), video)
    counted = jax.jit(module.apply).lower(shapes, video).cost_analysis()["flops"]
    assert counted == pytest.approx(flops.video_transformer(module, 4, 32, 32), rel=0.05)


def test_flops_of_vit_large_by_hand():
    # 16 frames of 256x256: 2048 tokens; 24 n d^2 + 4 n^2 d a layer, and the patches.
    module = VideoTransformer(width=1024, depth=24, heads=16)
    n, d = 2048, 1024
    by_hand = 24 * (24 * n * d**2 + 4 * n**2 * d) + 2 * n * (2 * 16 * 16 * 3) * d
    assert flops.video_transformer(module, 16, 256, 256) == by_hand


def test_blocks_name_what_writes_into_the_residual_stream_out():
    # nn.stack scales by this name; every block must have exactly its two.
    for module, inputs, _ in CASES.values():
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        shapes = shapes.get("llama", shapes)
        if "blocks" in shapes:
            assert "out" in shapes["blocks"]["attention"]
            assert "out" in shapes["blocks"]["mlp"]
