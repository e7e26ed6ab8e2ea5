import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiled_text import collective_sizes

from jepa.losses.normality import STATISTICS
from jepa.losses.sigreg import quadrature, sigreg, slice_key
from jepa.losses.sigreg import random_slices as draw
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated

OPTIONS = ("slices", "knots", "t_max", "form", "views", "scale_by_n", "chunk", "statistic")
QUICK = {"xla_backend_optimization_level": 0}
value_and_grad = jax.jit(
    jax.value_and_grad(sigreg), static_argnames=OPTIONS, compiler_options=QUICK
)
random_slices = jax.jit(draw, static_argnums=(1, 2, 3))
FORMS = [
    {"form": "folded", "knots": 17, "t_max": 3.0},
    {"form": "integral", "knots": 17, "t_max": 5.0},
    {"form": "integral", "knots": 10, "t_max": 3.0},
]


def torch_sigreg(x, directions, *, form, knots, t_max):
    """Epps-Pulley written from the paper and the published rule, in torch float64."""
    x = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    low = 0.0 if form == "folded" else -t_max
    t = torch.linspace(low, t_max, knots, dtype=torch.float64)
    step = t[1] - t[0]
    weights = torch.full_like(t, step.item() * (2 if form == "folded" else 1))
    weights[0] /= 2
    weights[-1] /= 2
    phi = torch.exp(-(t**2) / 2)
    projected = x @ torch.tensor(np.asarray(directions, np.float64))
    angles = projected[:, :, None] * t
    error = (angles.cos().mean(0) - phi) ** 2 + angles.sin().mean(0) ** 2
    value = ((error @ (weights * phi)) * len(x)).mean()
    value.backward()
    return value.item(), x.grad.numpy()


def samples(dtype="float32", n=16, width=6):
    return (np.random.default_rng(0).gamma(2.0, size=(n, width)) - 1.0).astype(dtype)


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
def test_parity_with_torch(options, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        x, key = jnp.asarray(samples(dtype)), jax.random.key(3)
        value, grad = value_and_grad(x, key, slices=32, **options)
        assert value.dtype == grad.dtype == dtype
        directions = random_slices(key, 6, 32, dtype)
    wanted, wanted_grad = torch_sigreg(x, directions, **options)
    np.testing.assert_allclose(value, wanted, rtol=tolerance)
    np.testing.assert_allclose(grad, wanted_grad, atol=tolerance * abs(wanted_grad).max())


def test_float64_on_a_mesh_in_chunks():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.enable_x64(), jax.set_mesh(mesh):
        x, key = jax.device_put(samples("float64"), batch_sharding(mesh)), jax.random.key(3)
        value, grad = value_and_grad(x, key, slices=32, chunk=12, **FORMS[2])
        directions = random_slices(key, 6, 32, "float64")
    wanted, wanted_grad = torch_sigreg(samples("float64"), directions, **FORMS[2])
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    np.testing.assert_allclose(grad, wanted_grad, atol=1e-12 * abs(wanted_grad).max())


def test_views_share_slices_and_pooled_views_are_another_number():
    # Views of the same samples: each view alone cannot tell that the others exist; pooled, the
    # same empirical characteristic function is multiplied by V * N.
    x, key = jnp.asarray(samples()), jax.random.key(3)
    one, _ = value_and_grad(x, key, slices=32)
    each, grad = value_and_grad(jnp.stack([x, x, x]), key, slices=32)
    pooled, _ = value_and_grad(jnp.stack([x, x, x]), key, slices=32, views="pooled")
    assert grad.shape == (3, *x.shape)
    np.testing.assert_allclose([each, pooled / 3], one, rtol=1e-6)
    means = [
        value_and_grad(jnp.stack([x, x, x]), key, slices=32, scale_by_n=False, views=views)[0]
        for views in ("each", "pooled")
    ]
    np.testing.assert_allclose(means, one / len(x), rtol=1e-6)


def gaussian_moment(s, options):
    """Integral of exp(-s t^2 / 2) times the quadrature's window."""
    t, w = quadrature(**options)
    return np.sum(w * np.exp(-s * t**2 / 2))


@pytest.mark.parametrize("options", FORMS[:2])
def test_expectation_under_scaled_gaussians(options):
    # |ecf - phi|^2 has expectation (1 - phi_s^2) / N + (phi_s - phi)^2, where phi_s is the
    # characteristic function of N(0, sigma^2).
    count = 64
    f = jax.jit(lambda x, key: sigreg(x, key, slices=64, **options))
    for sigma in (1.0, 2.0):
        s = sigma**2
        noise = gaussian_moment(0, options) - gaussian_moment(2 * s, options)
        bias = (
            gaussian_moment(2 * s, options)
            - 2 * gaussian_moment(s + 1, options)
            + gaussian_moment(2, options)
        )
        values = []
        for seed in range(40):
            keys = jax.random.split(jax.random.key(seed))
            values.append(f(sigma * jax.random.normal(keys[0], (count, 32)), keys[1]))
        error = np.std(values) / np.sqrt(len(values))
        assert error < 0.05 * np.mean(values)
        np.testing.assert_allclose(np.mean(values), noise + count * bias, atol=4 * error)


@pytest.mark.parametrize("options", FORMS[:2])
def test_collapse_to_a_point_is_a_known_sum(options):
    point = np.asarray([1.0, -2.0, 0.5, 0.0, 3.0])
    x, key = jnp.tile(jnp.asarray(point, "float32"), (12, 1)), jax.random.key(0)
    value, grad = value_and_grad(x, key, slices=8, **options)
    t, w = quadrature(**options)
    angles = (point @ np.asarray(random_slices(key, 5, 8, "float32"), np.float64))[:, None] * t
    error = abs(np.exp(1j * angles) - np.exp(-(t**2) / 2)) ** 2
    np.testing.assert_allclose(value, 12 * np.mean(error @ w), rtol=1e-5)
    flat, flat_grad = value_and_grad(x, key, slices=8, scale_by_n=False, **options)
    np.testing.assert_allclose(flat, value / 12, rtol=1e-6)
    np.testing.assert_allclose(flat_grad, grad / 12, rtol=1e-5, atol=1e-9)


def test_collapse_to_zero_has_no_gradient():
    value, grad = value_and_grad(jnp.zeros((12, 5)), jax.random.key(0), slices=8)
    t, w = quadrature("folded", 17, None)
    np.testing.assert_allclose(value, 12 * np.sum(w * (1 - np.exp(-(t**2) / 2)) ** 2), rtol=1e-5)
    assert not grad.any()


def test_turning_the_samples_changes_no_expectation():
    # The slices have no preferred direction: with many of them the value of turned samples is the
    # same to the Monte-Carlo error, although the samples are far from isotropic.
    x = samples(n=64) * np.arange(1.0, 7.0, dtype="float32")
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0].astype("float32")
    keys = jax.random.split(jax.random.key(0), 2 * 16)
    values = jax.jit(lambda x, keys: jax.lax.map(lambda k: sigreg(x, k, slices=256), keys))
    plain, turned = np.asarray(values(x, keys[:16])), np.asarray(values(x @ turn, keys[16:]))
    error = np.sqrt((plain.var(ddof=1) + turned.var(ddof=1)) / 16)
    assert error < 0.02 * plain.mean()
    assert abs(plain.mean() - turned.mean()) < 4 * error


@pytest.mark.parametrize("name", ["cramer_von_mises", "moments"])
def test_other_statistics_see_the_same_projections(name):
    assert name in STATISTICS
    x, key = np.stack([samples(), 2 * samples()]), jax.random.key(3)
    directions = random_slices(key, 6, 8, "float32")
    apart = [jax.jit(STATISTICS[name])(v @ directions).mean() for v in x]
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, ("data", "fsdp")))
        each, grad = value_and_grad(jax.device_put(x, rows), key, slices=8, statistic=name)
    np.testing.assert_allclose(each, np.mean(apart), rtol=1e-5)
    alone, alone_grad = value_and_grad(jnp.asarray(x), key, slices=8, statistic=name)
    np.testing.assert_allclose(grad, alone_grad, atol=1e-5 * abs(alone_grad).max())
    pooled, _ = value_and_grad(
        jnp.asarray(x), key, slices=8, statistic=name, views="pooled", scale_by_n=False
    )
    wanted = jax.jit(STATISTICS[name])(x.reshape(-1, 6) @ directions).mean() / 32
    np.testing.assert_allclose(pooled, wanted, rtol=1e-5)


def test_slice_key_is_a_function_of_seed_step_and_use():
    wanted = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 3), 1)
    assert slice_key(7, 3, 1) == wanted == jax.jit(slice_key)(7, jnp.int32(3), 1)
    keys = [slice_key(*a) for a in ((7, 3), (7, 4), (8, 3), (7, 3, 1))]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 4


def test_quadratures():
    # Both approach the integral of exp(-t^2 / 2) over their range.
    whole = np.sqrt(2 * np.pi)
    np.testing.assert_allclose(quadrature("integral", 17, 5.0)[1].sum(), whole, rtol=1e-5)
    np.testing.assert_allclose(quadrature("folded", 17, 3.0)[1].sum(), whole, rtol=4e-3)
    assert len(quadrature("integral", 17, None)[0]) == 9
    assert quadrature("integral", 17, None)[0][-1] == 5.0
    assert quadrature("folded", 17, None)[0][-1] == 3.0
    assert quadrature("integral", 10, 3.0)[0].min() > 0.3
    # [-3, 3] in 33 knots, folded, is [0, 3] in 17.
    for a, b in zip(quadrature("folded", 17, 3.0), quadrature("integral", 33, 3.0), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)


def test_slices_are_unit_and_depend_on_the_key_alone():
    a = random_slices(jax.random.key(1), 7, 50, "float32")
    np.testing.assert_allclose(jnp.linalg.norm(a, axis=0), 1.0, rtol=1e-6)
    mesh = make_mesh({"data": 2, "fsdp": 4})
    with jax.set_mesh(mesh):
        b = random_slices(jax.random.key(1), 7, 50, "float32")
    np.testing.assert_allclose(b, a, rtol=1e-6)
    assert not np.allclose(a, random_slices(jax.random.key(2), 7, 50, "float32"))


def test_only_characteristic_functions_cross_devices():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    knots, slices = 17, 32
    with jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        x = jax.ShapeDtypeStruct((4096, 24), "float32", sharding=rows)
        key = jax.eval_shape(lambda: jax.random.key(0))
        step = jax.jit(
            lambda x, key: jax.value_and_grad(sigreg)(x, key, slices=slices, knots=knots),
            out_shardings=(whole, rows),
        )
        compiled = step.lower(x, key).compile()
    # All knots at once, and nothing else: a reduction inside the loop over knots, which runs once
    # a knot, would show as 2 * slices.
    assert sum(collective_sizes(compiled.as_text())) == 2 * (knots - 1) * slices


def test_bfloat16_is_widened():
    x = jnp.asarray(samples(), jnp.bfloat16)
    key = jax.random.key(0)
    value, grad = value_and_grad(x, key, slices=16)
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    assert value == value_and_grad(x.astype("float32"), key, slices=16)[0]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"form": "paper"}, "paper"),
        ({"knots": 1}, "two knots"),
        ({"t_max": 0.0}, "t_max"),
        ({"t_max": float("nan")}, "t_max"),
        ({"slices": 0}, "slice"),
        ({"chunk": 0}, "chunk"),
        ({"views": "all"}, "views"),
        ({"implementation": "cuda"}, "cuda"),
        ({"statistic": "kolmogorov"}, "kolmogorov"),
        ({"statistic": "moments", "chunk": 8}, "chunks"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        sigreg(jnp.zeros((4, 3)), jax.random.key(0), **options)


def test_bad_shapes():
    with pytest.raises(ValueError, match="N, D"):
        sigreg(jnp.zeros(3), jax.random.key(0))
    for shape in ((0, 3), (2, 0, 3)):
        with pytest.raises(ValueError, match="no numbers"):
            sigreg(jnp.zeros(shape), jax.random.key(0))
