"""The two passes of the Epps-Pulley statistic as Pallas kernels for TPU.

Letters: n rows of this device, D width, S slices, K knots `t_k = start + k * spacing`; R rows and
C slices of one tile. `p` is the projection of the rows on the slices, `[n, S]`.

A tile of `p` is made on the matrix unit, turned into sums or into a gradient, and forgotten: `p`
never reaches the chip's memory, and neither does anything else of its size. One sine and one
cosine an element serve all knots, by the rotation
`exp(i t_(k+1) p) = exp(i t_k p) exp(i spacing p)`.

Both functions work on one device's arrays: on a mesh, call them under `jax.shard_map`, since XLA
cannot cut a kernel. They are for TPUs alone: a UserError says so when a program with them is
lowered for another platform, unless the caller asks for the interpreter, which is slow and meant
for tests. It is raised then and not earlier, since a program that is compiled ahead of time for
TPUs is traced on a machine without one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jepa.errors import UserError
from jepa.losses.trigonometry import sine_cosine

LANES = 128
STRIP = 64  # Rows that are rotated at a time: 8 registers each of c, s, c1, s1 out of 64.
ROW_TILES = (512, 256, 128, 64)
SLICE_TILES = (1024, 512, 256, 128)
VMEM_BYTES = 15 * 2**20  # Of the 16 MiB that a kernel gets.


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Rows and slices of one tile."""

    rows: int
    slices: int


def characteristic_sums(
    x: jax.Array,
    directions: jax.Array,
    start: float,
    spacing: float,
    knots: int,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Sums over the rows of `cos(t_k p) - exp(-t_k^2 / 2)` and `sin(t_k p)`, `p = x @ directions`.

    Args:
      x: `[n, D]` float32.
      directions: `[D, S]` float32.
      start: first knot.
      spacing: distance between knots.
      knots: K, at least 1; the kernel's code grows with it.
      interpret: run on any platform, slowly, instead of compiling for a TPU.

    Returns:
      Two `[K, S]` float32.

    Raises:
      ValueError: shapes or types that do not fit, or a D that is too large for the tiles.
      UserError: when lowered, on a platform other than TPU.
    """
    _check(x, directions, knots)
    x = x if interpret else _on_tpu(x)
    count, width = x.shape
    slices = directions.shape[1]
    tiles = tiles_for(count, width, slices, knots, backward=False)
    directions = _pad_slices(directions, tiles.slices)
    padded = directions.shape[1]
    sums = jax.ShapeDtypeStruct((knots, padded), jnp.float32)
    sums_block = pl.BlockSpec((knots, tiles.slices), lambda s, r: (0, s))
    partial_sums = pltpu.VMEM((knots, 8, tiles.slices), jnp.float32)
    cosines, sines = pl.pallas_call(
        functools.partial(
            _sums_kernel, start=float(start), spacing=float(spacing), knots=knots, count=count
        ),
        out_shape=(sums, sums),
        grid=(padded // tiles.slices, pl.cdiv(count, tiles.rows)),
        in_specs=[
            pl.BlockSpec((tiles.rows, width), lambda s, r: (r, 0)),
            pl.BlockSpec((width, tiles.slices), lambda s, r: (0, s)),
        ],
        out_specs=(sums_block, sums_block),
        scratch_shapes=[
            pltpu.VMEM((tiles.rows, LANES), jnp.float32),
            partial_sums,
            partial_sums,
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="epps_pulley_sums",
    )(x, directions)
    return cosines[:, :slices], sines[:, :slices]


def pull_back(
    x: jax.Array,
    directions: jax.Array,
    sine_weights: jax.Array,
    cosine_weights: jax.Array,
    start: float,
    spacing: float,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`(sum_k sine_weights sin(t_k p) + cosine_weights cos(t_k p)) @ directions.T`.

    Args:
      x: `[n, D]` float32.
      directions: `[D, S]` float32.
      sine_weights: `[K, S]` float32.
      cosine_weights: `[K, S]` float32.
      start: first knot.
      spacing: distance between knots.
      interpret: run on any platform, slowly, instead of compiling for a TPU.

    Returns:
      `[n, D]` float32.

    Raises:
      ValueError: shapes or types that do not fit, or a D that is too large for the tiles.
      UserError: when lowered, on a platform other than TPU.
    """
    knots = sine_weights.shape[0]
    _check(x, directions, knots)
    for weights in (sine_weights, cosine_weights):
        if weights.shape != (knots, directions.shape[1]) or weights.dtype != jnp.float32:
            raise ValueError(
                f"weights must be float32 [knots, slices], not {weights.dtype} {weights.shape}"
            )
    x = x if interpret else _on_tpu(x)
    count, width = x.shape
    slices = directions.shape[1]
    tiles = tiles_for(count, width, slices, knots, backward=True)
    # Slices of zeros with weights of zero: they add nothing to the sum over slices.
    directions, sine_weights, cosine_weights = (
        _pad_slices(a, tiles.slices) for a in (directions, sine_weights, cosine_weights)
    )
    weights_block = pl.BlockSpec((knots, tiles.slices), lambda r, s: (0, s))
    rows_block = pl.BlockSpec((tiles.rows, width), lambda r, s: (r, 0))
    return pl.pallas_call(
        functools.partial(_pull_back_kernel, start=float(start), spacing=float(spacing)),
        out_shape=jax.ShapeDtypeStruct((count, width), jnp.float32),
        grid=(pl.cdiv(count, tiles.rows), directions.shape[1] // tiles.slices),
        in_specs=[
            rows_block,
            pl.BlockSpec((width, tiles.slices), lambda r, s: (0, s)),
            weights_block,
            weights_block,
        ],
        out_specs=rows_block,
        scratch_shapes=[pltpu.VMEM((tiles.rows, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="epps_pulley_pull_back",
    )(x, directions, sine_weights, cosine_weights)


def tiles_for(count: int, width: int, slices: int, knots: int, *, backward: bool) -> Tiles:
    """Chooses the tiles with the least traffic among those that fit into the kernel's memory.

    The forward pass reads `x` once for every tile of slices, the backward pass the directions
    once for every tile of rows; of equals the larger tile wins, since the matrix unit likes long
    runs of rows.

    Raises:
      ValueError: not even the smallest tiles fit.
    """
    fitting = [
        Tiles(rows, columns)
        for rows in _useful(ROW_TILES, count)
        for columns in _useful(SLICE_TILES, slices)
        if vmem_bytes(Tiles(rows, columns), width, knots, backward=backward) <= VMEM_BYTES
    ]
    if not fitting:
        raise ValueError(
            f"the Epps-Pulley kernel cannot hold a tile of width {width} with {knots} knots in "
            f"{VMEM_BYTES >> 20} MiB; use the XLA form"
        )

    def cost(tiles: Tiles) -> tuple[int, int]:
        tiles_read_again = (
            math.ceil(count / tiles.rows) if backward else math.ceil(slices / tiles.slices)
        )
        return tiles_read_again, -tiles.rows * tiles.slices

    return min(fitting, key=cost)


def vmem_bytes(tiles: Tiles, width: int, knots: int, *, backward: bool) -> int:
    """Counts the kernel's memory: what is streamed is there twice, and registers are 8 by 128.

    The compiler's own share is an upper bound to what was measured for v5e.
    """
    lanes = math.ceil(width / LANES) * LANES
    sublanes = math.ceil(width / 8) * 8
    sums = math.ceil(knots / 8) * 8 * tiles.slices * 4
    streamed = tiles.rows * lanes * 4 + sublanes * tiles.slices * 4 + 2 * sums
    scratch = tiles.rows * LANES * 4
    compilers = (4 * tiles.rows + 2 * sublanes) * LANES * 4
    if backward:
        streamed += tiles.rows * lanes * 4
    else:
        scratch += 2 * knots * 8 * tiles.slices * 4
    return 2 * streamed + scratch + compilers


def _useful(sizes: tuple[int, ...], extent: int) -> list[int]:
    """The sizes that are not more than twice what is there, and at least the smallest."""
    return [size for size in sizes if size < 2 * extent] or [sizes[-1]]


def _check(x: jax.Array, directions: jax.Array, knots: int) -> None:
    if x.ndim != 2 or directions.ndim != 2 or x.shape[1] != directions.shape[0]:
        raise ValueError(f"needs [n, D] and [D, S], not {x.shape} and {directions.shape}")
    if 0 in x.shape or directions.shape[1] < 1 or knots < 1:
        raise ValueError(f"nothing to sum: {x.shape}, {directions.shape} and {knots} knots")
    if x.dtype != jnp.float32 or directions.dtype != jnp.float32:
        raise ValueError(
            f"the kernel takes float32, not {x.dtype} and {directions.dtype}; use the XLA form"
        )


def _refuse(*_: Any) -> Any:
    raise UserError(
        "SIGReg's implementation 'pallas' is for TPUs; set it to 'xla' on other platforms (or, in "
        "tests, interpret=True)"
    )


# The identity, where it can be lowered.
_on_tpu_p = Primitive("epps_pulley_on_tpu")
_on_tpu_p.def_abstract_eval(lambda x: x)
batching.primitive_batchers[_on_tpu_p] = lambda x, axes: (_on_tpu_p.bind(*x), axes[0])
mlir.register_lowering(_on_tpu_p, lambda _, x: [x], platform="tpu")
mlir.register_lowering(_on_tpu_p, _refuse)


@jax.jit
def _on_tpu(x: jax.Array) -> jax.Array:
    return _on_tpu_p.bind(x)


def _pad_slices(array: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(array, ((0, 0), (0, -array.shape[1] % multiple)))


def _sums_kernel(x, directions, cosines, sines, p, cosine_parts, sine_parts, **settings):
    """One tile of rows and slices; rows that are not there must not count, since cos 0 is 1."""
    start, spacing, knots, count = (settings[k] for k in ("start", "spacing", "knots", "count"))
    tile = pl.program_id(1)

    @pl.when(tile == 0)
    def _():
        cosine_parts[...] = jnp.zeros_like(cosine_parts)
        sine_parts[...] = jnp.zeros_like(sine_parts)

    def strip(rows: pl.Slice, columns: pl.Slice | slice) -> None:
        angles = p[rows, :]
        added: jax.Array | int = STRIP // 8  # Rows in each of `_by_sublane`'s sums.
        if count % p.shape[0]:
            row = jax.lax.broadcasted_iota(jnp.int32, angles.shape, 0)
            there = row < count - tile * p.shape[0] - rows.start
            angles = jnp.where(there, angles, 0.0)  # What is beyond the rows may be NaN.
            added = _by_sublane(there.astype(jnp.float32))
        (cosine, sine), step = _rotations(angles, start, spacing)
        if count % p.shape[0]:
            cosine, sine = jnp.where(there, cosine, 0.0), jnp.where(there, sine, 0.0)
        for k in range(knots):
            if k:
                cosine, sine = _rotate(cosine, sine, *step)
            expected = math.exp(-((start + k * spacing) ** 2) / 2)
            cosine_parts[k, :, columns] += _by_sublane(cosine) - added * expected
            sine_parts[k, :, columns] += _by_sublane(sine)

    @pl.loop(0, directions.shape[1], step=LANES)
    def _(column):
        columns = pl.ds(pl.multiple_of(column, LANES), LANES)
        p[...] = _product(x, directions[:, columns], contract=0)
        _for_strips(p, lambda rows: strip(rows, columns))

    @pl.when(tile == pl.num_programs(1) - 1)
    def _():
        cosines[...] = jnp.sum(cosine_parts[...], axis=1)
        sines[...] = jnp.sum(sine_parts[...], axis=1)


def _pull_back_kernel(x, directions, sine_weights, cosine_weights, out, p, *, start, spacing):
    """One tile; by Horner's rule `sum_k w_k z^k`, `w = cosine_weights - i sine_weights`."""
    knots = sine_weights.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _():
        out[...] = jnp.zeros_like(out)

    def strip(rows: pl.Slice, columns: pl.Slice | slice) -> None:
        angles = p[rows, :]
        first, step = _rotations(angles, start, spacing)
        last = pl.ds(knots - 1, 1)
        real = jnp.broadcast_to(cosine_weights[last, columns], angles.shape)
        imaginary = jnp.broadcast_to(-sine_weights[last, columns], angles.shape)
        for k in reversed(range(knots - 1)):
            real, imaginary = _rotate(real, imaginary, *step)
            real += cosine_weights[pl.ds(k, 1), columns]
            imaginary -= sine_weights[pl.ds(k, 1), columns]
        p[rows, :], _ = _rotate(real, imaginary, *first)

    @pl.loop(0, directions.shape[1], step=LANES)
    def _(column):
        columns = pl.ds(pl.multiple_of(column, LANES), LANES)
        p[...] = _product(x, directions[:, columns], contract=0)
        _for_strips(p, lambda rows: strip(rows, columns))
        out[...] += _product(p, directions[:, columns], contract=1)


def _product(left, right: jax.Array, contract: int) -> jax.Array:
    """Contracts the last dimension of `left` with dimension `contract` of `right`, in float32."""
    return jax.lax.dot_general(
        left[...],
        right,
        (((1,), (contract,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _for_strips(p, strip) -> None:
    """Walks over the rows of a tile in pieces whose state stays in registers."""

    @pl.loop(0, p.shape[0], step=STRIP, unroll=2)
    def _(row):
        strip(pl.ds(pl.multiple_of(row, STRIP), STRIP))


def _rotations(angles: jax.Array, start: float, spacing: float):
    """(cos, sin) at the first knot, and of the step from knot to knot."""
    step = sine_cosine(angles * spacing)[::-1]
    if start == spacing:
        return step, step
    if start == 0:
        return (jnp.ones_like(angles), jnp.zeros_like(angles)), step
    return sine_cosine(angles * start)[::-1], step


def _rotate(
    real: jax.Array, imaginary: jax.Array, cosine: jax.Array, sine: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return real * cosine - imaginary * sine, imaginary * cosine + real * sine


def _by_sublane(a: jax.Array) -> jax.Array:
    """`[STRIP, LANES]` -> `[8, LANES]`: whole registers are added, and nothing is shuffled."""
    return jnp.sum(a.reshape(-1, 8, LANES), axis=0)
