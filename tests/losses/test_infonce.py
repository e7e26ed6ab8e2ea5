import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiled_text import collective_sizes

from jepa.losses.infonce import info_nce, inverse_temperature
from jepa.parallel.mesh import batch_sharding, make_mesh, replicated

HASH = np.array([5, 7, 5, 1, 2, 7, 5, 3], np.int32)
SCALE = 9.0


def inputs(dtype, size=8, width=6):
    rng = np.random.default_rng(0)
    p = rng.standard_normal((size, width))
    return p.astype(dtype), (p + rng.standard_normal((size, width))).astype(dtype)


def reference(p, t, hashes, scale=SCALE):
    """Float64, by loops over rows and columns in torch; gradients by torch's autograd."""
    p, t = (torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (p, t))
    s = torch.tensor(np.float64(scale), requires_grad=True)
    unit_p = p / p.norm(dim=1, keepdim=True)
    unit_t = t / t.norm(dim=1, keepdim=True)
    total = 0.0
    size = len(p)
    for i in range(size):
        keep = [j for j in range(size) if j == i or hashes is None or hashes[i] != hashes[j]]
        row = torch.stack([s * (unit_p[i] @ unit_t[j]) for j in keep])
        column = torch.stack([s * (unit_p[j] @ unit_t[i]) for j in keep])
        own = s * (unit_p[i] @ unit_t[i])
        total = total + (row.exp().sum().log() - own) + (column.exp().sum().log() - own)
    loss = total / (2 * size)
    loss.backward()
    return loss.item(), p.grad.numpy(), t.grad.numpy(), s.grad.numpy()


def value_and_grads(p, t, hashes, scale):
    def loss(p, t, scale):
        return info_nce(p, t, inverse_temperature=scale, target_hash=hashes)

    (value, _), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(p, t, scale)
    return value, *grads


@jax.jit
def score(p, t, target_hash=None):
    return info_nce(p, t, inverse_temperature=10.0, target_hash=target_hash)


@pytest.mark.parametrize(
    ("devices", "shape", "masked"),
    [
        (1, {"data": 1}, False),
        (2, {"fsdp": 2}, True),
        (4, {"data": 2, "fsdp": 2}, True),
        (8, {"data": 8}, False),
        (8, {"data": 2, "fsdp": 4}, True),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_value_and_gradient_on_meshes(devices, shape, masked, dtype, tolerance):
    hashes = HASH if masked else None
    wanted = reference(*inputs("float64"), hashes)
    mesh = make_mesh(shape, jax.devices()[:devices])
    with jax.enable_x64(dtype == "float64"), jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        p, t = (jax.device_put(x, rows) for x in inputs(dtype))
        hashes = None if hashes is None else jax.device_put(hashes, rows)
        step = jax.jit(value_and_grads, out_shardings=(whole, rows, rows, whole))
        got = step(p, t, hashes, jnp.asarray(SCALE, dtype))
        assert all(x.dtype == dtype for x in got)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_logits_stay_on_their_devices():
    size, width = 1024, 8
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        x = jax.ShapeDtypeStruct((size, width), "float32", sharding=rows)
        hashes = jax.ShapeDtypeStruct((size,), "int32", sharding=rows)
        scale = jax.ShapeDtypeStruct((), "float32", sharding=whole)
        step = jax.jit(value_and_grads, out_shardings=(whole, rows, rows, whole))
        text = step.lower(x, x, hashes, scale).compile().as_text()
    sizes = collective_sizes(text)
    # The targets and their gradient, and a dozen vectors over the batch; never the logits.
    assert max(sizes) == size * width
    assert sum(sizes) < 2 * size * width + 16 * size


def test_mask_removes_equal_targets_in_both_directions():
    rng = np.random.default_rng(1)
    p, t = (rng.standard_normal((4, 3)).astype("float32") for _ in range(2))
    hashes = np.array([1, 1, 2, 3], np.int32)

    def loss(p, t):
        return info_nce(p, t, inverse_temperature=3.0, target_hash=hashes)[0]

    @jax.jit
    def step(p, t):
        return jax.value_and_grad(loss, (0, 1))(p, t)

    # With two examples of one target nothing is left to tell apart: the loss is zero.
    two = score(p[:2], t[:2], hashes[:2])
    assert two[0] == 0 and two[1]["negative_similarity"] == 0
    value, grads = step(p, t)
    assert all(np.isfinite(g).all() for g in grads)
    assert value < reference(p, t, None, 3.0)[0]


def test_logits_are_float32_for_bfloat16_inputs():
    p, t = (jnp.asarray(x, jnp.bfloat16) for x in inputs("float32"))
    value, metrics = jax.jit(info_nce)(p, t, inverse_temperature=100.0)
    wanted = reference(p.astype("float32"), t.astype("float32"), None, 100.0)[0]
    assert value.dtype == jnp.float32
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_metrics():
    eye = np.eye(4, dtype=np.float32)
    swapped = eye[[1, 0, 2, 3]]
    _, metrics = score(eye, swapped)
    assert metrics["accuracy_prediction_to_target"] == 0.5
    assert metrics["accuracy_target_to_prediction"] == 0.5
    np.testing.assert_allclose(metrics["positive_similarity"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["negative_similarity"], 2 / 12, rtol=1e-6)
    # One prediction for all: each direction counts for itself.
    one = np.ones((4, 4), np.float32)
    ramp = np.array([[1, 1, 1, 1], [3, 1, 1, 1], [5, 1, 1, 1], [7, 1, 1, 1]], np.float32)
    _, metrics = score(one, ramp)
    assert metrics["accuracy_prediction_to_target"] == 0.25
    assert metrics["accuracy_target_to_prediction"] == 0.0
    # Duplicates are neither negatives nor mistakes.
    _, metrics = info_nce(
        eye, swapped, inverse_temperature=10.0, target_hash=np.array([3, 3, 4, 5])
    )
    assert metrics["accuracy_prediction_to_target"] == 0.5
    same = info_nce(eye, eye[[0, 0, 2, 3]], inverse_temperature=1.0, target_hash=HASH[[0, 2, 3, 4]])
    assert same[1]["accuracy_prediction_to_target"] == 0.75  # row 1 ties with rows 2 and 3 at zero


def test_collapse_scores_nothing_and_costs_log_batch():
    x = np.ones((8, 5), np.float32)
    value, metrics = score(x, x)
    np.testing.assert_allclose(value, np.log(8), rtol=1e-6)
    assert metrics["accuracy_prediction_to_target"] == 0


def test_inverse_temperature_is_bounded_and_can_come_back():
    f = inverse_temperature
    np.testing.assert_allclose(f(jnp.log(20.0)), 20.0, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(f)(jnp.log(20.0)), 20.0, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: -f(x))(jnp.log(20.0)), -20.0, rtol=1e-6)
    assert f(jnp.float32(9.0)) == 100.0 and f(jnp.float32(9.0), 30.0) == 30.0
    assert jax.grad(lambda x: -f(x))(jnp.float32(9.0)) == 0  # a step would raise it further
    assert jax.grad(f)(jnp.float32(9.0)) == 100.0  # a step lowers it
    assert f(jnp.bfloat16(1.0)).dtype == jnp.float32


def test_shapes_that_do_not_fit():
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="info_nce"):
        info_nce(x, x[:3], inverse_temperature=1.0)
    with pytest.raises(ValueError, match="target_hash"):
        info_nce(x, x, inverse_temperature=1.0, target_hash=np.zeros(3, np.int32))
