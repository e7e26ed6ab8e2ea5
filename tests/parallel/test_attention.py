import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jepa.parallel import attention
from jepa.parallel.mesh import make_mesh

attend = jax.jit(attention.attend, static_argnames=("dtype", "implementation"))


def reference(q, k, v, mask=None):
    """NumPy float64, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, heads, queries, dim = q.shape
    out = np.zeros_like(q)
    keys = k.shape[2]
    if mask is None:
        mask = np.ones((1, 1, 1, 1), bool)
    mask = np.broadcast_to(mask, (batch, 1, queries, keys))
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // k.shape[1])
            for n in range(queries):
                seen = mask[b, 0, n]
                if not seen.any():
                    out[b, h, n] = v[b, g].mean(0)
                    continue
                s = k[b, g, seen] @ q[b, h, n] / np.sqrt(dim)
                w = np.exp(s - s.max())
                out[b, h, n] = (w / w.sum()) @ v[b, g, seen]
    return out


def arrays(heads=4, kv_heads=2, n=5, m=7, dim=8, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (3, heads, n, dim), dtype) * 2
    k, v = (jax.random.normal(key, (3, kv_heads, m, dim), dtype) for key in keys[1:])
    return q, k, v


def key_mask(m=7):
    """Lengths m, 3 and 0: the last example is padding only."""
    return (np.arange(m) < np.array([[m], [3], [0]]))[:, None, None, :]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_against_float64(kv_heads, masked):
    q, k, v = arrays(kv_heads=kv_heads)
    mask = key_mask() if masked else None
    out = attend(q, k, v, mask=mask, dtype="float32")
    assert out.shape == q.shape and out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(q, k, v, mask), atol=2e-6)


def test_mask_over_queries_and_keys():
    q, k, v = arrays()
    mask = np.tril(np.ones((5, 7), bool))[None, None]
    out = attend(q, k, v, mask=mask, dtype="float32")
    np.testing.assert_allclose(out, reference(q, k, v, mask), atol=2e-6)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        q, k, v = arrays(dtype="float64")
        out = attend(q, k, v, mask=key_mask(), dtype="float64")
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, reference(q, k, v, key_mask()), atol=1e-13)


def test_bfloat16_keeps_float32_softmax():
    # 512 equal logits: weights of 1/512 summed in bfloat16 would stall far from 1.
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    k = jnp.zeros((1, 1, 512, 8), jnp.bfloat16)
    v = jnp.ones((1, 1, 512, 8), jnp.bfloat16)
    out = attend(q, k, v, dtype="bfloat16")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)
    q, k, v = arrays(dtype="bfloat16")
    out = attend(q, k, v, dtype="bfloat16")
    np.testing.assert_allclose(np.asarray(out, np.float64), reference(q, k, v), atol=3e-2)


def test_gradients_match_finite_differences_and_ignore_hidden_keys():
    with jax.enable_x64(True):
        q, k, v = arrays(dtype="float64")
        mask = jnp.asarray(key_mask())
        mix = jax.random.normal(jax.random.key(9), q.shape, "float64")

        def f(q, k, v):
            return jnp.sum(mix * attend(q, k, v, mask=mask, dtype="float64"))

        grads = jax.grad(f, (0, 1, 2))(q, k, v)
        rng = np.random.default_rng(0)
        step = 1e-6
        for i, (x, g) in enumerate(zip((q, k, v), grads, strict=True)):
            direction = rng.standard_normal(x.shape)
            sides = []
            for sign in (1, -1):
                moved = [q, k, v]
                moved[i] = np.asarray(x) + sign * step * direction
                sides.append(np.sum(np.asarray(mix) * reference(*moved, np.asarray(mask))))
            numeric = (sides[0] - sides[1]) / (2 * step)
            np.testing.assert_allclose(np.sum(g * direction), numeric, rtol=1e-7)
        assert all(np.isfinite(g).all() for g in grads)
        assert not grads[1][1, :, 3:].any() and not grads[2][1, :, 3:].any()


def test_heads_cut_over_devices_give_the_same():
    q, k, v = arrays()
    mesh = make_mesh({"tensor": 2}, jax.devices()[:2])
    with jax.set_mesh(mesh):
        cut = jax.NamedSharding(mesh, jax.P(None, "tensor"))
        parts = [jax.device_put(x, cut) for x in (q, k, v)]
        out = jax.jit(lambda *a: attention.attend(*a, dtype="float32"))(*parts)
    np.testing.assert_allclose(out, reference(q, k, v), atol=2e-6)


def test_predicate_of_the_fused_kernel():
    fits = attention.cudnn_fits
    assert fits("bfloat16", 64, None) and fits("float16", 128, None)
    assert not fits("float32", 64, None)
    assert not fits("bfloat16", 60, None)
    assert not fits("bfloat16", 256, None)
    assert not fits("bfloat16", 64, np.ones((1, 1, 1, 4), bool))


def test_platform_is_that_of_the_mesh():
    assert attention.platform() == "cpu"
    seen = []
    device = jax.sharding.Mesh(jax.devices()[:1], "data").abstract_mesh.abstract_device
    tpu = type(device)(device_kind="TPU v5", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=tpu)
    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(lambda: seen.append(attention.platform()))
    assert seen == ["tpu"]


@pytest.mark.parametrize(
    "change",
    [
        {"q": (3, 4, 5, 6)},
        {"k": (3, 3, 7, 8), "v": (3, 3, 7, 8)},
        {"v": (3, 2, 6, 8)},
        {"mask": (3, 4, 5, 7)},
        {"mask": (3, 7)},
    ],
)
def test_shapes_that_do_not_fit(change):
    shapes = {"q": (3, 4, 5, 8), "k": (3, 2, 7, 8), "v": (3, 2, 7, 8), "mask": (3, 1, 1, 7)}
    shapes |= change
    q, k, v = (jnp.zeros(shapes[name]) for name in "qkv")
    with pytest.raises(ValueError):
        attention.attend(q, k, v, mask=jnp.ones(shapes["mask"], bool), dtype="float32")
    with pytest.raises(ValueError, match="none of"):
        attention.attend(q, q, q, dtype="float32", implementation="flash")
