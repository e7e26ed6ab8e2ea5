"""Every pair once, whatever the sizes, the tiles and the mesh are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_contrastive import info_nce_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.losses.infonce import info_nce
from jepa.losses.pairs import _Cut, exponentials, merge, sweep
from jepa.parallel.mesh import make_mesh
from jepa.parallel.rows import rows

QUICK = {"xla_backend_optimization_level": 0}


def run(function, devices, *arrays):
    with jax.set_mesh(make_mesh({"data": devices}, jax.devices()[:devices])):
        return jax.jit(function).lower(*arrays).compile(compiler_options=QUICK)(*arrays)


def visits(transport, tile, numbers):
    """For each row and column, the sum of its partners' numbers, its own, and logarithms."""

    def visit(part):
        counted = jnp.ones((len(part.rows["x"]), len(part.columns["x"])))
        counted = counted if part.new is None else jnp.where(part.new, counted, 0)
        values = jnp.log(part.rows["x"][:, None] * part.columns["x"])
        values = values if part.new is None else jnp.where(part.new, values, -jnp.inf)
        row = {
            "sum": counted @ part.columns["x"],
            "own": part.own_values(counted * part.columns["x"]),
            "exponentials": exponentials(values, 1, (1.0, 2.0)),
        }
        column = {
            "sum": part.rows["x"] @ counted,
            "exponentials": exponentials(values, 0, (1.0, 2.0)),
        }
        return row, column

    layout = rows(len(numbers))
    arrays = {"x": numbers}

    def local(arrays):
        row, column = sweep(layout, transport, tile, arrays, {"x": 2 * arrays["x"]}, visit)
        logs = [s.pop("exponentials") for s in (row, column)]
        return row, column, [(x.best, x.log(0), x.log(1)) for x in logs]

    return layout.map(local, layout.spec, layout.spec)(arrays)


@pytest.mark.parametrize(
    ("devices", "piece", "tile", "transport"),
    [
        (1, 7, 8, "ring"),
        (1, 7, 3, "all_gather"),
        (2, 5, 2, "ring"),
        (4, 3, 5, "all_gather"),
        (8, 5, 3, "ring"),
        (8, 3, 2, "all_gather"),
        (1, 150, 128, "ring"),
    ],
)
def test_every_pair_is_visited_once(devices, piece, tile, transport):
    x = np.arange(1.0, devices * piece + 1, dtype=np.float32)
    row, column, logs = run(partial(visits, transport, tile), devices, x)
    np.testing.assert_allclose(row["sum"], np.full(len(x), 2 * x.sum()), rtol=1e-6)
    np.testing.assert_allclose(column["sum"], np.full(len(x), x.sum()), rtol=1e-6)
    np.testing.assert_array_equal(row["own"], 2 * x)
    for (best, first, second), (mine, others) in zip(logs, ((x, 2 * x), (2 * x, x)), strict=True):
        np.testing.assert_allclose(best, np.log(mine * others.max()), rtol=1e-6)
        np.testing.assert_allclose(first, np.log(mine * others.sum()), rtol=1e-6)
        np.testing.assert_allclose(second, np.log(mine**2 * (others**2).sum()), rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "tile", "tiles", "size"),
    [
        (1100, 1024, 2, 640),
        (3072, 1024, 3, 1024),
        (1000, 1024, 1, 1000),  # whole
        (7, 3, 3, 3),
        (300, 200, 2, 150),  # 256 would be more than was asked for
    ],
)
def test_tiles_are_whole_registers_where_they_can_be(count, tile, tiles, size):
    assert _Cut.of(count, tile) == _Cut(count, tiles, size)


def test_rows_that_no_mesh_divides():
    x = np.arange(1.0, 6.0, dtype=np.float32)
    row, column, _ = run(partial(visits, "ring", 2), 4, x)
    np.testing.assert_allclose(row["sum"], np.full(5, 30.0), rtol=1e-6)
    np.testing.assert_allclose(column["sum"], np.full(5, 15.0), rtol=1e-6)


def test_exponentials_far_apart():
    x = np.float32([[-np.inf, -np.inf], [-300.0, -np.inf], [200.0, 199.0], [-np.inf, 500.0]])
    joined = merge(exponentials(x[:, :1], 1), exponentials(x[:, 1:], 1))
    wanted = [-np.inf, -300.0, 200.0 + np.log1p(np.exp(-1.0)), 500.0]
    np.testing.assert_allclose(joined.log(), wanted, rtol=1e-6)
    assert not np.isnan(joined.sums[0]).any()


@st.composite
def problems(draw):
    devices = draw(st.sampled_from([1, 2, 4]))
    size = devices * draw(st.integers(1, 5))
    hashes = draw(st.none() | st.lists(st.integers(0, 4), min_size=size, max_size=size))
    equal_targets = ["negatives", "masked"] + ["positives"] * (hashes is not None)
    return {
        "devices": devices,
        "hashes": hashes,
        "seed": draw(st.integers(0, 99)),
        "size": size,
        "options": {
            "tile": draw(st.integers(1, 6)),
            "transport": draw(st.sampled_from(["ring", "all_gather"])),
        },
        "choice": draw(
            st.fixed_dictionaries(
                {
                    "equal_targets": st.sampled_from(equal_targets),
                    "label_smoothing": st.sampled_from([0.0, 0.25]),
                }
            )
            | st.fixed_dictionaries({"hardness": st.sampled_from([0.5, 2.0])})
        ),
    }


@settings(max_examples=7, deadline=None, derandomize=True)
@given(problems())
def test_info_nce_of_any_size(problem):
    rng = np.random.default_rng(problem["seed"])
    p, t = rng.standard_normal((2, problem["size"], 3)).astype(np.float32)
    hashes = problem["hashes"]
    hashes = None if hashes is None else np.array(hashes, np.int32)

    def loss(p, t, scale):
        options = {"target_hash": hashes, **problem["choice"], **problem["options"]}
        return info_nce(p, t, inverse_temperature=scale, **options)[0]

    scale, step = np.float32(5.0), 1e-30
    value, grads = run(jax.value_and_grad(loss, (0, 1, 2)), problem["devices"], p, t, scale)

    def reference(along):
        arrays = {"predictions": p, "targets": t, "inverse_temperature": scale}
        arrays = {k: x + 1j * step * along[k] for k, x in arrays.items()}
        arrays |= {} if hashes is None else {"target_hash": hashes}
        return info_nce_reference(arrays, **problem["choice"])

    along = {
        "predictions": rng.standard_normal(p.shape),
        "targets": rng.standard_normal(t.shape),
        "inverse_temperature": rng.standard_normal(),
    }
    wanted = reference(along)
    slope = sum(np.sum(np.float64(g) * d) for g, d in zip(grads, along.values(), strict=True))
    np.testing.assert_allclose(value, np.real(wanted), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(slope, np.imag(wanted) / step, rtol=2e-4, atol=2e-5)
