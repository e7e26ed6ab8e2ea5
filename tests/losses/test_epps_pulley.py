"""The statistic's device-local pieces, chunks and views, and what the compiled program holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import collective_sizes
from jax.sharding import NamedSharding, PartitionSpec

from jepa.losses import epps_pulley as module
from jepa.losses import epps_pulley_kernel
from jepa.losses.epps_pulley import (
    Plan,
    characteristic_sums,
    epps_pulley,
    pull_back,
    rotate,
    rotations,
)
from jepa.losses.sigreg import quadrature
from jepa.losses.sigreg import random_slices as draw
from jepa.parallel.mesh import BATCH_AXES, make_mesh

QUICK = {"xla_backend_optimization_level": 0}
random_slices = jax.jit(draw, static_argnums=(1, 2, 3))


def plan(form="folded", knots=17, **options):
    return Plan.of(*quadrature(form, knots, None), **options)


def arrays(count=24, width=5, slices=12, views=None, dtype="float32", seed=0):
    shape = (count, width) if views is None else (views, count, width)
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return jnp.asarray(x), random_slices(jax.random.key(seed), width, slices, dtype)


def test_rotation_error_is_bounded_and_below_chebyshevs():
    # A product of two complex numbers errs by sqrt(5) units of rounding (Brent, Percival and
    # Zimmermann, 2007), and the k-th power takes on k times the error of its factor.
    knots, unit = 17, 2.0**-24
    angle = np.concatenate([np.geomspace(1e-6, 1.5, 4000), np.linspace(1.5, 40, 4000)])
    angle = angle.astype(np.float32)
    (c1, s1), _ = rotations(jnp.asarray(angle), 1.0, 1.0)
    exact = np.exp(1j * angle.astype(np.float64))
    factor = np.abs(np.asarray(c1) + 1j * np.asarray(s1) - exact).max()
    assert factor < 4 * unit
    z, chebyshev = [(c1, s1)], [np.ones_like(c1), np.asarray(c1)]
    for _ in range(knots - 1):
        z.append(rotate(z[-1], z[0]))
        chebyshev.append(2 * np.asarray(c1) * chebyshev[-1] - chebyshev[-2])
    for k in range(1, knots + 1):
        power = np.asarray(z[k - 1][0], np.float64) + 1j * np.asarray(z[k - 1][1], np.float64)
        assert np.abs(power - exact**k).max() <= k * factor + (k - 1) * np.sqrt(5) * unit
    # Near 0, where the recurrence for cosines alone squares k.
    small = angle < 0.05
    last = (exact**knots).real[small]
    assert np.abs(z[-1][0][small] - last).max() * 5 < np.abs(chebyshev[-1][small] - last).max()


@pytest.mark.parametrize(
    ("start", "spacing", "knots"), [(0.25, 0.25, 12), (0.3, 0.6, 5), (0.7, 0.2, 3), (2.0, 1.0, 1)]
)
@pytest.mark.parametrize("block", [60, 1 << 16])
def test_device_local_functions(monkeypatch, start, spacing, knots, block):
    # A block of 60 is five rows of twelve slices, and four rows are left over.
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    with jax.enable_x64():
        x, directions = arrays(dtype="float64")
        sums = jax.jit(
            functools.partial(characteristic_sums, knots=knots),
            static_argnums=(2, 3),
            compiler_options=QUICK,
        )
        cosines, sines = sums(x, directions, start, spacing)
        a, b = np.random.default_rng(1).standard_normal((2, knots, 12))
        pull = jax.jit(pull_back, static_argnums=(4, 5), compiler_options=QUICK)
        gradient = pull(x, directions, a, b, start, spacing)
    t = start + spacing * np.arange(knots)
    angles = t[:, None, None] * (np.asarray(x) @ np.asarray(directions))
    expected = np.exp(-(t**2) / 2)[:, None, None]
    np.testing.assert_allclose(cosines, (np.cos(angles) - expected).sum(1), atol=1e-12)
    np.testing.assert_allclose(sines, np.sin(angles).sum(1), atol=1e-12)
    slopes = np.einsum("kns,ks->ns", np.sin(angles), a) + np.einsum("kns,ks->ns", np.cos(angles), b)
    np.testing.assert_allclose(gradient, slopes @ np.asarray(directions).T, atol=1e-12)


def test_plan_leaves_out_the_knot_zero():
    assert plan().points[0] == plan().start == plan().spacing == 3 / 16
    np.testing.assert_allclose(plan().points, quadrature("folded", 17, None)[0][1:], rtol=1e-14)
    even = plan("integral", 10)
    np.testing.assert_allclose(even.points, quadrature("integral", 10, None)[0], rtol=1e-14)
    assert plan("integral", 2).points.tolist() == [5.0]


@pytest.mark.parametrize("knots", [5, 13, 17, 25])
def test_one_sine_serves_where_the_first_knot_is_one_spacing_from_zero(knots):
    for form in ("folded", "integral"):
        for t_max in (3.0, 4.7, 5.0):
            made = Plan.of(*quadrature(form, knots, t_max))
            assert made.start == made.spacing
            np.testing.assert_allclose(made.points[-1], t_max, rtol=1e-14)


@functools.partial(jax.jit, static_argnums=2, compiler_options=QUICK)
def value_and_grad(x, directions, plan):
    def weighted(x):
        values = epps_pulley(x, directions, plan)
        return jnp.sum(values * jnp.arange(1.0, 1 + len(values))), values

    (_, values), gradient = jax.value_and_grad(weighted, has_aux=True)(x)
    return values, gradient


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("chunk", [5, 12])
def test_chunks_change_rounding_alone(chunk, pooled):
    x, directions = arrays(views=3)
    values, gradient = value_and_grad(x, directions, plan(pooled=pooled, chunk=chunk))
    wanted, wanted_gradient = value_and_grad(x, directions, plan(pooled=pooled))
    assert values.shape == (1 if pooled else 3,)
    np.testing.assert_allclose(values, wanted, rtol=2e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=2e-6 * abs(wanted_gradient).max())


def test_views_are_statistics_of_their_own():
    x, directions = arrays(views=3)
    values, gradient = value_and_grad(x, directions, plan())
    for i in range(3):
        wanted, wanted_gradient = value_and_grad(x[i : i + 1], directions, plan())
        np.testing.assert_allclose(values[i], wanted[0], rtol=1e-6)
        scale = abs(wanted_gradient).max()
        np.testing.assert_allclose(gradient[i] / (i + 1), wanted_gradient[0], atol=1e-6 * scale)
    pooled, gradient = value_and_grad(x, directions, plan(pooled=True))
    wanted, wanted_gradient = value_and_grad(x.reshape(1, -1, 5), directions, plan())
    np.testing.assert_allclose(pooled, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient.reshape(1, -1, 5), wanted_gradient, atol=1e-7)


def test_turning_samples_and_slices_together_changes_nothing():
    x, directions = arrays(views=1)
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(5), (5, 5)))[0]
    value, gradient = value_and_grad(x, directions, plan())
    turned, turned_gradient = value_and_grad(x @ turn, turn.T @ directions, plan())
    np.testing.assert_allclose(turned, value, rtol=1e-5)
    np.testing.assert_allclose(turned_gradient, gradient @ turn, atol=1e-5 * abs(gradient).max())


def test_digits_do_not_drown_in_many_samples():
    # A sum of cosines is near N, and what counts of it near sqrt(N).
    x, directions = arrays(131_072, 8, 16, views=1)
    value = jax.jit(epps_pulley, static_argnums=2)(x, directions, plan())
    with jax.enable_x64():
        x, directions = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, directions))
        wanted = jax.jit(epps_pulley, static_argnums=2)(x, directions, plan())
        wanted = np.asarray(wanted)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)


def test_second_derivatives_are_those_of_float64():
    def curvature(x, directions):
        def slope(x):
            return jax.grad(lambda x: jnp.sum(epps_pulley(x, directions, plan())))(x)

        way = jnp.cos(x)
        return jax.grad(lambda x: jnp.vdot(slope(x), way))(x)

    x, directions = arrays(views=1)
    found = jax.jit(curvature, compiler_options=QUICK)(x, directions)
    with jax.enable_x64():
        x, directions, step = np.asarray(x, np.float64), np.asarray(directions, np.float64), 1e-5
        forward, backward = (
            value_and_grad(jnp.asarray(x + way * np.cos(x)), jnp.asarray(directions), plan())[1]
            for way in (step, -step)
        )
        wanted = np.asarray(forward - backward) / (2 * step)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize("shape", [None, {"data": 2, "fsdp": 2}])
def test_the_kernel_is_chosen_by_name(monkeypatch, shape):
    for name in ("characteristic_sums", "pull_back"):
        function = getattr(epps_pulley_kernel, name)
        monkeypatch.setattr(epps_pulley_kernel, name, functools.partial(function, interpret=True))
    x, directions = arrays(views=1 if shape is None else 2)
    wanted, wanted_gradient = value_and_grad(x, directions, plan("integral", 5))
    chosen = plan("integral", 5, implementation="pallas")
    if shape is None:
        values, gradient = value_and_grad(x, directions, chosen)
    else:
        mesh = make_mesh(shape, jax.devices()[:4])
        with jax.set_mesh(mesh):
            rows = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
            values, gradient = value_and_grad(jax.device_put(x, rows), directions, chosen)
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5 * abs(wanted_gradient).max())


@pytest.mark.parametrize(
    ("views", "pooled", "chunk", "shape"),
    [
        (1, False, None, {"data": 2, "fsdp": 4}),
        (3, False, 24, {"data": 2, "fsdp": 4}),
        (3, True, 24, {"data": 2, "fsdp": 4}),
        (3, False, None, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_one_all_reduce_of_the_stated_size(views, pooled, chunk, shape):
    mesh = make_mesh(shape)
    spread = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((views, 256, 8), "float32", sharding=spread)
    directions = jax.ShapeDtypeStruct((8, 64), "float32", sharding=whole)

    def sizes(function, **options):
        compiled = jax.jit(function, **options).lower(x, directions).compile(compiler_options=QUICK)
        return collective_sizes(compiled.as_text())

    def value(x, directions):
        return jnp.sum(epps_pulley(x, directions, plan(pooled=pooled, chunk=chunk)))

    stated = 2 * (1 if pooled else views) * 16 * 64
    with jax.set_mesh(mesh):
        assert sizes(value) == [stated]
        both = sizes(jax.value_and_grad(value), out_shardings=(whole, spread))
    # Devices of the tensor axis shared the work, and each gets the gradient of all its rows.
    gathered = [views * 64 * 8] if "tensor" in shape else []
    assert sorted(both, reverse=True) == sorted([stated, *gathered], reverse=True)


def temporaries(count, width, slices, knots=17, chunk=None):
    x = jax.ShapeDtypeStruct((1, count, width), "float32")
    directions = jax.ShapeDtypeStruct((width, slices), "float32")
    compiled = value_and_grad.lower(x, directions, plan(knots=knots, chunk=chunk)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 4


def test_memory_is_that_of_the_projections_or_of_a_chunk():
    count, width, slices, knots, chunk = 4096, 16, 512, 17, 32
    whole, small = count * slices, count * chunk
    beside = 3 * (count * width + width * slices + 4 * knots * slices)
    assert temporaries(count, width, slices) < 1.2 * whole + 6 * module.CPU_BLOCK + beside
    assert temporaries(count, width, slices, chunk=chunk) < 6 * small + beside < whole
    # With the knots, only what has the size K * S grows.
    growth = temporaries(count, width, slices, knots=65) - temporaries(count, width, slices)
    assert growth < 8 * (65 - knots) * slices < whole
