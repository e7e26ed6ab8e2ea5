import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiled_text import collective_sizes

from jepa.losses.sigreg import quadrature, random_slices, sigreg
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated

OPTIONS = ("slices", "knots", "t_max", "form", "scale_by_n")
value_and_grad = jax.jit(jax.value_and_grad(sigreg), static_argnames=OPTIONS)
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


@pytest.mark.parametrize(
    ("devices", "shape"),
    [(1, {}), (2, {"fsdp": 2}), (4, {"data": 2, "fsdp": 2}), (8, {"data": 8})],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_value_and_gradient_on_meshes(devices, shape, dtype, tolerance):
    options = FORMS[0]
    mesh = make_mesh(shape, jax.devices()[:devices])
    with jax.enable_x64(dtype == "float64"), jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        x = jax.device_put(samples(dtype), rows)
        key = jax.random.key(3)
        directions = random_slices(key, 6, 32, dtype)
        step = jax.jit(
            lambda x, key: jax.value_and_grad(sigreg)(x, key, slices=32, **options),
            out_shardings=(whole, rows),
        )
        value, grad = step(x, key)
    wanted, wanted_grad = torch_sigreg(samples(dtype), directions, **options)
    np.testing.assert_allclose(value, wanted, rtol=tolerance)
    np.testing.assert_allclose(grad, wanted_grad, atol=tolerance * abs(wanted_grad).max())


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
def test_collapse_to_zero_is_a_known_integral(options):
    x = jnp.zeros((12, 5))
    value, grad = value_and_grad(x, jax.random.key(0), slices=8, **options)
    t, w = quadrature(**options)
    np.testing.assert_allclose(value, 12 * np.sum(w * (1 - np.exp(-(t**2) / 2)) ** 2), rtol=1e-5)
    assert not grad.any()
    flat, _ = value_and_grad(x, jax.random.key(0), slices=8, scale_by_n=False, **options)
    np.testing.assert_allclose(flat, value / 12, rtol=1e-6)


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
        draw = jax.jit(lambda k: random_slices(k, 7, 50, "float32"))
        np.testing.assert_allclose(draw(jax.random.key(1)), a, rtol=1e-6)
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


def test_memory_does_not_grow_with_knots():
    def temporaries(knots):
        step = jax.jit(lambda x, k: jax.grad(sigreg)(x, k, slices=64, knots=knots))
        x = jax.ShapeDtypeStruct((1024, 16), "float32")
        key = jax.eval_shape(lambda: jax.random.key(0))
        return step.lower(x, key).compile().memory_analysis().temp_size_in_bytes

    one = 4 * 1024 * 64  # the projected batch
    assert temporaries(65) - temporaries(17) < one


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
        ({"slices": 0}, "slice"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        sigreg(jnp.zeros((4, 3)), jax.random.key(0), **options)
    with pytest.raises(ValueError, match="N, D"):
        sigreg(jnp.zeros(3), jax.random.key(0))
