import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiled_text import array_sizes, collective_sizes

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


def value_and_grads(p, t, hashes, scale, **options):
    def loss(p, t, scale):
        return info_nce(p, t, inverse_temperature=scale, target_hash=hashes, **options)

    (value, _), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(p, t, scale)
    return value, *grads


def program(mesh, size, width, dtype="float32", hashes=True, **options):
    """Compiled value and gradients of a batch that lies on the mesh as in training."""
    with jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        x = jax.ShapeDtypeStruct((size, width), dtype, sharding=rows)
        hashes = jax.ShapeDtypeStruct((size,), "int32", sharding=rows) if hashes else None
        scale = jax.ShapeDtypeStruct((), "float32", sharding=whole)
        step = jax.jit(
            partial(value_and_grads, **options), out_shardings=(whole, rows, rows, whole)
        )
        return step.lower(x, x, hashes, scale).compile()


def error(got, wanted):
    """The largest difference, against the largest number."""
    return np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max()


@jax.jit
def score(p, t, target_hash=None):
    return info_nce(p, t, inverse_temperature=10.0, target_hash=target_hash)


@pytest.mark.parametrize(
    ("shape", "hashes", "options"),
    [
        ({"data": 1}, None, {"tile": 3}),
        ({"data": 2, "fsdp": 2}, HASH, {}),
        ({"data": 2, "fsdp": 4}, HASH, {"transport": "all_gather"}),
    ],
)
def test_float64_on_meshes(shape, hashes, options):
    wanted = reference(*inputs("float64"), hashes)
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    with jax.enable_x64(True), jax.set_mesh(mesh):
        rows, whole = batch_sharding(mesh), replicated(mesh)
        p, t = (jax.device_put(x, rows) for x in inputs("float64"))
        hashes = None if hashes is None else jax.device_put(hashes, rows)
        step = jax.jit(
            partial(value_and_grads, **options), out_shardings=(whole, rows, rows, whole)
        )
        got = step(p, t, hashes, jnp.float64(SCALE))
        assert all(x.dtype == "float64" for x in got)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_gathered_targets_are_the_only_large_arrays():
    size, width = 1024, 8
    mesh = make_mesh({"data": 4, "fsdp": 2})
    text = program(mesh, size, width, transport="all_gather", tile=32).as_text()
    sizes = collective_sizes(text)
    # The targets, once or twice, and the reduction of their gradient; a dozen vectors beside.
    assert max(sizes) == size * width
    assert sum(sizes) < 3 * size * width + 16 * size
    assert max(array_sizes(text)) == size * width


def test_ring_holds_nothing_larger_than_a_piece():
    size, width, devices, tile = 1024, 8, 8, 32
    mesh = make_mesh({"data": 4, "fsdp": 2})
    text = program(mesh, size, width, tile=tile).as_text()
    assert "all-gather" not in text and "reduce-scatter" not in text
    assert max(array_sizes(text)) == max(size * width // devices, tile * tile)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("float32", {}), ("bfloat16", {}), ("bfloat16", {"hardness": 0.5, "tile": 512})],
)
def test_ring_memory(dtype, options):
    # A piece is 19 MB in float32; all logits would be 2.4 GB, those of one device 302 MB.
    compiled = program(make_mesh({"data": 8}), 24_576, 1536, dtype, **options)
    assert compiled.memory_analysis().temp_size_in_bytes < 128e6


def test_gradient_that_nobody_wants_costs_nothing():
    def loss(p, t):
        return info_nce(p, t, inverse_temperature=SCALE, transport="all_gather")[0]

    mesh = make_mesh({"data": 8})
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((64, 8), "float32", sharding=batch_sharding(mesh))
        text = jax.jit(jax.grad(loss)).lower(x, x).compile().as_text()
    assert re.search(r"f32\[64,8\]\S* all-gather", text)
    assert not re.search(r"f32\[8,8\]\S* reduce-scatter", text)


@pytest.mark.parametrize("transport", ["all_gather", "ring"])
def test_metrics_on_a_mesh(transport):
    p, t = inputs("float32", 24)
    hashes = np.arange(24, dtype=np.int32) % 19
    options = {"inverse_temperature": SCALE, "target_hash": hashes}
    _, wanted = jax.jit(partial(info_nce, **options))(p, t)
    mesh = make_mesh({"data": 4}, jax.devices()[:4])
    with jax.set_mesh(mesh):
        _, got = jax.jit(partial(info_nce, **options, transport=transport, tile=4))(p, t)
    assert 0 < wanted["accuracy_prediction_to_target"] < 1
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, err_msg=name)


def test_zero_rows_get_no_gradient():
    p, t = inputs("float32")
    p[2] = t[5] = 0
    value, by_p, by_t, _ = jax.jit(value_and_grads)(p, t, HASH, SCALE)
    assert np.isfinite(value) and np.isfinite(by_p).all() and np.isfinite(by_t).all()
    assert (by_p[2] == 0).all() and (by_t[5] == 0).all()
    assert (np.abs(by_p).max(1) > 0).sum() == 7


def test_logits_far_below_those_of_other_rows():
    # The negatives of one row, and its own target, are 200 below those of the others.
    p = np.tile(np.float32([[1, 0]]), (6, 1))
    p[4] *= -1
    t = np.tile(np.float32([[1, 0]]), (6, 1))
    value, *_ = jax.jit(partial(value_and_grads, tile=2))(p, t, None, 100.0)
    columns = (5 * np.log(5) + 200 + np.log(5)) / 6
    np.testing.assert_allclose(value, (np.log(6) + columns) / 2, rtol=1e-6)


def test_digits_at_the_highest_inverse_temperature():
    # Pairs that have been learnt: logits of 100 round at 1e-5, and the loss is as small as that.
    p, t = inputs("float32", 24, 16)
    t = p + np.float32(0.8) * (t - p)
    wanted = reference(p, t, None, 100.0)
    assert 1e-6 < wanted[0] < 1e-4

    def naive(p, t, scale):
        p, t = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (p, t))
        logits = scale * jnp.matmul(p, t.T, precision="highest")
        own = jnp.diagonal(logits)
        return jnp.mean(sum(jax.nn.logsumexp(x, axis=1) - own for x in (logits, logits.T))) / 2

    got = jax.jit(partial(value_and_grads, tile=5))(p, t, None, 100.0)
    value, grads = jax.jit(jax.value_and_grad(naive, (0, 1, 2)))(p, t, 100.0)
    for mine, other, right in zip(got, (value, *grads), wanted, strict=True):
        assert error(mine, right) < 5e-5
        assert error(mine, right) < error(other, right) / 10


@pytest.mark.parametrize("options", [{}, {"hardness": 0.7}, {"label_smoothing": 0.1}])
def test_nothing_to_tell_apart(options):
    p, t = inputs("float32", 4)
    same = np.zeros(4, np.int32)
    step = jax.jit(partial(value_and_grads, **options, tile=2))
    value, *grads = step(p, t, same, SCALE)
    assert value == 0
    assert all((np.asarray(g) == 0).all() for g in grads)


def test_hardness_starts_from_the_plain_loss():
    p, t = inputs("float32")
    plain = jax.jit(value_and_grads)(p, t, HASH, SCALE)
    slight = jax.jit(partial(value_and_grads, hardness=1e-6))(p, t, HASH, SCALE)
    for a, b in zip(slight, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_hash": np.zeros(3, np.int32)}, "target_hash"),
        ({"inverse_temperature": np.ones(4)}, "inverse_temperature must be a scalar"),
        ({"equal_targets": "ignored"}, "equal_targets 'ignored'"),
        ({"transport": "mail"}, "transport 'mail'"),
        ({"tile": 0}, "positive tile"),
        ({"hardness": -1.0}, "hardness >= 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing in \[0, 1\)"),
        ({"hardness": 1.0, "label_smoothing": 0.1}, "neither"),
        ({"hardness": 1.0, "equal_targets": "positives", "target_hash": HASH[:4]}, "neither"),
        ({"hardness": float("nan")}, "hardness >= 0"),
        ({"equal_targets": "positives"}, "needs a target_hash"),
    ],
)
def test_options_that_do_not_fit(options, message):
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        info_nce(x, x, **{"inverse_temperature": 1.0, **options})
    with pytest.raises(ValueError, match="two"):
        info_nce(x, x[:3], inverse_temperature=1.0)


def test_embeddings_that_are_none():
    with pytest.raises(ValueError, match="float embeddings, not int32"):
        info_nce(*[np.zeros((4, 3), np.int32)] * 2, inverse_temperature=1.0)
    with pytest.raises(ValueError, match="no numbers"):
        info_nce(*[np.zeros((0, 3), np.float32)] * 2, inverse_temperature=1.0)
