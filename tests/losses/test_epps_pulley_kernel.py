"""The fused kernels against a plain formula (interpreted), and as compiled for a TPU."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jepa.errors import UserError
from jepa.losses import epps_pulley_kernel as kernel
from jepa.losses.sigreg import quadrature
from jepa.parallel import topology

WHOLE = PartitionSpec()


def knots_of(form, knots):
    """(start, spacing, K) of a quadrature."""
    points, _ = quadrature(form, knots, None)
    return float(points[0]), float(points[1] - points[0]), len(points)


def arrays(count, width, slices, knots):
    rng = np.random.default_rng(count + width)
    x = jnp.asarray(rng.standard_normal((count, width)), "float32")
    directions = rng.standard_normal((width, slices)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    weights = rng.standard_normal((2, knots, slices)).astype(np.float32)
    return x, directions, *weights


def angles(x, directions, start, spacing, knots):
    projected = np.asarray(x, np.float64) @ directions.astype(np.float64)
    return (start + spacing * np.arange(knots))[:, None, None] * projected


def cosines_of(angles, start, spacing, knots):
    """What is summed of cosines: their distances to those of N(0, 1)."""
    gaussian = np.exp(-((start + spacing * np.arange(knots)) ** 2) / 2)
    return np.cos(angles) - gaussian[:, None, None]


@pytest.mark.parametrize(
    ("count", "width", "slices", "grid"),
    [
        (1, 3, 5, knots_of("folded", 2)),
        (7, 130, 200, knots_of("integral", 4)),
        (300, 3, 5, knots_of("integral", 17)),
        (300, 130, 200, (0.2, 0.2, 3)),
    ],
)
def test_equal_to_the_formula_where_tiles_do_not_divide(count, width, slices, grid):
    x, directions, of_sines, of_cosines = arrays(count, width, slices, grid[2])
    expected = angles(x, directions, *grid)
    cosines, sines = kernel.characteristic_sums(x, directions, *grid, interpret=True)
    assert cosines.shape == sines.shape == of_sines.shape
    np.testing.assert_allclose(cosines / count, cosines_of(expected, *grid).mean(1), atol=1e-5)
    np.testing.assert_allclose(sines / count, np.sin(expected).mean(1), atol=1e-5)
    pulled = kernel.pull_back(x, directions, of_sines, of_cosines, *grid[:2], interpret=True)
    slopes = of_sines[:, None] * np.sin(expected) + of_cosines[:, None] * np.cos(expected)
    expected = slopes.sum(0) @ directions.T.astype(np.float64)
    assert pulled.dtype == jnp.float32
    np.testing.assert_allclose(pulled, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_tiles_of_one_pass_add_up(monkeypatch):
    monkeypatch.setattr(kernel, "ROW_TILES", (64,))
    monkeypatch.setattr(kernel, "SLICE_TILES", (128,))
    x, directions, of_sines, of_cosines = arrays(150, 3, 300, 3)
    expected = angles(x, directions, 0.0, 0.3, 3)
    cosines, _ = kernel.characteristic_sums(x, directions, 0.0, 0.3, 3, interpret=True)
    wanted = cosines_of(expected, 0.0, 0.3, 3).sum(1)
    np.testing.assert_allclose(cosines, wanted, rtol=1e-5, atol=1e-4)
    pulled = kernel.pull_back(x, directions, of_sines, of_cosines, 0.0, 0.3, interpret=True)
    slopes = of_sines[:, None] * np.sin(expected) + of_cosines[:, None] * np.cos(expected)
    np.testing.assert_allclose(pulled, slopes.sum(0) @ directions.T, rtol=1e-5, atol=1e-4)


def test_views_can_be_mapped_over():
    x, directions, _, _ = arrays(20, 3, 5, 2)
    views = jnp.stack([x[:10], x[10:]])

    def sums(x):
        return kernel.characteristic_sums(x, directions, 0.0, 0.3, 2, interpret=True)

    for mapped, each in zip(
        jax.vmap(sums)(views), zip(*map(sums, views), strict=True), strict=True
    ):
        np.testing.assert_allclose(mapped, np.stack(each), rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_refuses_to_be_lowered_for_other_platforms(platform):
    x, directions, of_sines, of_cosines = arrays(8, 4, 6, 2)
    for function, arguments in (
        (kernel.characteristic_sums, (x, directions, 0.0, 0.3, 2)),
        (kernel.pull_back, (x, directions, of_sines, of_cosines, 0.0, 0.3)),
    ):
        traced = jax.jit(lambda f=function, a=arguments: f(*a)).trace()
        with pytest.raises(UserError, match="for TPUs"):
            traced.lower(lowering_platforms=(platform,))


@pytest.mark.parametrize(
    ("x", "directions", "knots", "message"),
    [
        (np.zeros((4, 3), np.float32), np.zeros((2, 5), np.float32), 2, "needs"),
        (np.zeros((0, 3), np.float32), np.zeros((3, 5), np.float32), 2, "nothing"),
        (np.zeros((4, 3), np.float32), np.zeros((3, 5), np.float32), 0, "nothing"),
        (np.zeros((4, 3), np.float64), np.zeros((3, 5), np.float32), 2, "float32"),
        (np.zeros((4, 9000), np.float32), np.zeros((9000, 5), np.float32), 2, "width 9000"),
    ],
)
def test_says_what_it_cannot_take(x, directions, knots, message):
    with pytest.raises(ValueError, match=message):
        kernel.characteristic_sums(x, directions, 0.0, 0.3, knots, interpret=True)


def test_weights_must_fit():
    x, directions, of_sines, of_cosines = arrays(8, 4, 6, 2)
    with pytest.raises(ValueError, match="weights"):
        kernel.pull_back(x, directions, of_sines, of_cosines[:, :5], 0.0, 0.3, interpret=True)


def test_tiles_fit_and_are_as_large_as_they_can_be():
    for width, backward in itertools.product((3, 512, 1536, 4096), (False, True)):
        tiles = kernel.tiles_for(4096, width, 1024, 17, backward=backward)
        assert kernel.vmem_bytes(tiles, width, 17, backward=backward) <= kernel.VMEM_BYTES
    assert kernel.tiles_for(4096, 512, 1024, 17, backward=False) == kernel.Tiles(512, 1024)
    assert kernel.tiles_for(1, 512, 1, 17, backward=True) == kernel.Tiles(64, 128)


needs_libtpu = pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")


def compiled(count, width, slices, grid):
    """Both functions on the chips of a v5e host, `count` rows a chip."""
    mesh = topology.tpu_mesh("v5e:2x2", {"data": 4})
    rows = PartitionSpec("data")

    def on_mesh(function, arguments, out_specs):
        specs = [NamedSharding(mesh, spec) for _, _, spec in arguments]
        shapes = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for (shape, dtype, _), sharding in zip(arguments, specs, strict=True)
        ]
        mapped = jax.shard_map(
            function,
            in_specs=tuple(spec for _, _, spec in arguments),
            out_specs=out_specs,
            check_vma=False,
        )
        with jax.set_mesh(mesh):
            return topology.compile_for_tpu(mapped, *shapes)

    x = (4 * count, width), "float32", rows
    directions = (width, slices), "float32", WHOLE
    weights = (grid[2], slices), "float32", WHOLE
    return (
        on_mesh(lambda *a: kernel.characteristic_sums(*a, *grid), (x, directions), WHOLE),
        on_mesh(
            lambda *a: kernel.pull_back(*a, *grid[:2]), (x, directions, weights, weights), rows
        ),
    )


@needs_libtpu
def test_projections_stay_on_the_chip():
    count, slices = 4096, 1024
    for program in compiled(count, 512, slices, knots_of("folded", 17)):
        assert program.as_text().count('custom_call_target="tpu_custom_call"') == 1
        assert program.memory_analysis().temp_size_in_bytes < count * slices * 4 / 16


@needs_libtpu
@pytest.mark.parametrize(
    ("count", "width", "slices", "grid"),
    [
        (7, 3, 5, knots_of("integral", 4)),
        (300, 1536, 1000, (0.2, 0.2, 16)),
        (128, 4096, 128, (0.0, 0.2, 5)),
    ],
)
def test_odd_sizes_compile_within_the_chips_memory(count, width, slices, grid):
    for program in compiled(count, width, slices, grid):
        assert "tpu_custom_call" in program.as_text()
