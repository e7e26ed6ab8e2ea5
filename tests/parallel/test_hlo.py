"""Counting in compiled programs, against closed forms: small programs whose traffic is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jepa.parallel import hlo, traffic
from jepa.parallel.mesh import make_mesh

LAYERS, ROWS, WIDTH = 5, 16, 32


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "fsdp": 4})


def program(mesh, function, *arguments, out=None):
    """The compiled text of a function of (shape, spec) pairs."""
    given = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, spec in arguments
    ]
    options = {} if out is None else {"out_shardings": NamedSharding(mesh, PartitionSpec(*out))}
    with jax.set_mesh(mesh):
        compiled = jax.jit(function, **options).lower(*given)
        text = compiled.compile({"xla_backend_optimization_level": 0}).as_text()
    return hlo.parse(text)


def totals(program, mesh):
    found = {}
    for one in traffic.collectives(program, mesh):
        key = one.kind, one.axes
        found[key] = found.get(key, 0) + one.sent * one.times
    return found


def test_a_loop_over_layers_gathers_each_of_them(mesh):
    """Weights are cut over fsdp and rows over data: each layer's weights are gathered, once."""

    def run(weights, x):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, PartitionSpec())
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(layer, x, weights)[0]

    cut = (None, "fsdp", None)
    found = program(
        mesh, run, ((LAYERS, WIDTH, WIDTH), cut), ((ROWS, WIDTH), ("data",)), out=("data",)
    )
    loops = [i for _, i, _ in found.runs() if i.opcode == "while"]
    assert [found.trips(loop) for loop in loops] == [LAYERS]
    piece = WIDTH * WIDTH * 4 / 4
    # The compiler may gather the layers in the loop, or all of them before it: as many bytes.
    assert totals(found, mesh) == {("all-gather", "fsdp"): LAYERS * piece * 3}


@pytest.mark.parametrize(
    "kind, axes, sent",
    [
        ("all-reduce", ("data",), 2 * ROWS * WIDTH * 4 / 2),
        ("all-reduce", ("data", "fsdp"), 2 * ROWS * WIDTH * 4 * 7 / 8),
        ("all-gather", ("fsdp",), ROWS * WIDTH * 4 * 3),
        ("reduce-scatter", ("fsdp",), ROWS * WIDTH * 4 * 3 / 4),
        ("all-to-all", ("data",), ROWS * WIDTH * 4 / 2),
        ("collective-permute", ("fsdp",), ROWS * WIDTH * 4),
    ],
)
def test_what_each_kind_sends(mesh, kind, axes, sent):
    """Of an array `[ROWS, WIDTH]` on every device, three times in a loop."""
    name = axes if len(axes) > 1 else axes[0]
    shift = [(i, (i + 1) % 4) for i in range(4)]
    calls = {
        "all-reduce": lambda x: jax.lax.psum(x, name),
        "all-gather": lambda x: jax.lax.all_gather(x, name, tiled=True)[:ROWS],
        "reduce-scatter": lambda x: jnp.tile(
            jax.lax.psum_scatter(x, name, scatter_dimension=0, tiled=True), (4, 1)
        ),
        "all-to-all": lambda x: jax.lax.all_to_all(x, name, 0, 0, tiled=True),
        "collective-permute": lambda x: jax.lax.ppermute(x, name, shift),
    }

    def run(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(calls[kind](x)), x)

    every = PartitionSpec(("data", "fsdp"))
    cut = jax.shard_map(run, mesh=mesh, in_specs=every, out_specs=every, check_vma=False)
    found = program(mesh, cut, ((8 * ROWS, WIDTH), (("data", "fsdp"),)))
    assert totals(found, mesh) == {(kind, "+".join(axes)): 3 * sent}


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,1},{2,3}}, x={}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
        ("channel_id=1", [[0, 1, 2, 3]]),
    ],
)
def test_groups_in_every_form(text, groups):
    assert traffic.device_groups(text, 4) == groups


def test_a_nested_loop_runs_as_often_as_both_say(mesh):
    def run(x):
        def inner(_, x):
            return jnp.sin(jax.lax.psum(x, "data"))

        return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.fori_loop(0, 7, inner, x), x)

    every = PartitionSpec("data")
    cut = jax.shard_map(run, mesh=mesh, in_specs=every, out_specs=every, check_vma=False)
    found = program(mesh, cut, ((2 * ROWS, WIDTH), ("data",)))
    assert sum(one.times for one in traffic.collectives(found, mesh)) == 21


# As TPUs' compiler writes: memory spaces, tiles, a collective spread over two fusions, a
# reduce-scatter as a fusion of an all-reduce, a loop whose condition compares with a constant.
TPU = """HloModule jit_step, is_scheduled=true

%gather_one (p: bf16[64,8]) -> bf16[64,32] {
  %p = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}, frontend_attributes={chain_id="3"}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
}

%gather_two (p.1: bf16[64,8]) -> bf16[64,32] {
  %p.1 = bf16[64,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}, frontend_attributes={chain_id="3"}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p.2: f32[64,32]) -> f32[16,32] {
  %p.2 = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,32]{1,0:T(8,128)} all-reduce(%p.2), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  ROOT %cut = f32[16,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={16,32}
}

%slices (p.3: f32[12,64,256], p.4: s32[]) -> f32[64,256] {
  %p.3 = f32[12,64,256]{2,1,0:T(8,128)} parameter(0)
  %p.4 = s32[]{:T(128)} parameter(1)
  %one = f32[1,64,256]{2,1,0:T(8,128)} dynamic-slice(%p.3, %p.4, %p.4, %p.4), dynamic_slice_sizes={1,64,256}
  ROOT %flat = f32[64,256]{1,0:T(8,128)} bitcast(%one)
}

%body (c: (s32[], bf16[64,8], f32[64,32], f32[12,64,256])) -> (s32[], bf16[64,8], f32[64,32], f32[12,64,256]) {
  %c = (s32[]{:T(128)}, bf16[64,8]{1,0:T(8,128)(2,1)}, f32[64,32]{1,0:T(8,128)}, /*index=3*/f32[12,64,256]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %w = bf16[64,8]{1,0:T(8,128)(2,1)} get-tuple-element(%c), index=1
  %g = f32[64,32]{1,0:T(8,128)} get-tuple-element(%c), index=2
  %stack = f32[12,64,256]{2,1,0:T(8,128)} get-tuple-element(%c), index=3
  %fusion.1 = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} fusion(%w), kind=kCustom, calls=%gather_one
  %fusion.2 = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} fusion(%w), kind=kCustom, calls=%gather_two
  %scatter = f32[16,32]{1,0:T(8,128)S(1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %layer = f32[64,256]{1,0:T(8,128)} fusion(%stack, %i), kind=kLoop, calls=%slices
  ROOT %next = (s32[]{:T(128)}, bf16[64,8]{1,0:T(8,128)(2,1)}, f32[64,32]{1,0:T(8,128)}, f32[12,64,256]{2,1,0:T(8,128)}) tuple(%i, %w, %g, %stack)
}

%condition (c.1: (s32[], bf16[64,8], f32[64,32], f32[12,64,256])) -> pred[] {
  %c.1 = (s32[]{:T(128)}, bf16[64,8]{1,0:T(8,128)(2,1)}, f32[64,32]{1,0:T(8,128)}, f32[12,64,256]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x: (s32[], bf16[64,8], f32[64,32], f32[12,64,256])) -> (s32[], bf16[64,8], f32[64,32], f32[12,64,256]) {
  %x = (s32[]{:T(128)}, bf16[64,8]{1,0:T(8,128)(2,1)}, f32[64,32]{1,0:T(8,128)}, f32[12,64,256]{2,1,0:T(8,128)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[64,8]{1,0:T(8,128)(2,1)}, f32[64,32]{1,0:T(8,128)}, f32[12,64,256]{2,1,0:T(8,128)}) while(%x), condition=%condition, body=%body
}
"""  # noqa: E501


def test_a_program_for_tpus(mesh):
    found = hlo.parse(TPU)
    assert totals(found, mesh) == {
        ("all-gather", "fsdp"): 12 * (64 * 8 * 2) * 3,
        ("reduce-scatter", "fsdp"): 12 * (64 * 32 * 4) * 3 / 4,
    }
    weights, gradient = 64 * 128 * 2, 64 * 128 * 4  # filled up to tiles of 128
    layer = 64 * 256 * 4  # read, and written; of the stack no more than that
    assert traffic.moved(found) == 12 * (2 * weights + gradient + 2 * layer + 4)  # and which one


def test_tiles_fill_up_the_innermost_dimensions():
    (array,) = hlo.arrays("f32[3,5,200]{1,2,0:T(8,128)}")
    assert (array.bytes, array.padded) == (3 * 5 * 200 * 4, 3 * 128 * 200 * 4)
    (array,) = hlo.arrays("bf16[7]{0:T(256)(128)(2,1)S(1)}")
    assert array.padded == 512 and not array.in_memory


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("hello")


def test_moving_counts_reading_and_writing(mesh):
    """One elementwise function reads one array and writes another."""
    found = program(mesh, lambda x: jnp.sin(x) * 2, ((8 * ROWS, WIDTH), (("data", "fsdp"),)))
    assert traffic.moved(found) == pytest.approx(2 * ROWS * WIDTH * 4)
    assert np.sum([i.opcode == "fusion" for _, i, _ in found.runs()]) <= 1
