"""VL-JEPA with an image tower as its X-encoder: frames one by one, on any mesh, cached or not."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_vl_jepa_method as vl_jepa

from jepa.errors import UserError
from jepa.methods import x_encoders
from jepa.methods.vl_jepa import VLJEPA
from jepa.parallel import mesh as meshes
from jepa.parallel import partition

# All that DINOv2's giant with registers has; a table of another grid than that of the frames.
TOWER = {
    "model.x_encoder.kind": "image",
    "model.x_encoder.table_grid": (1, 3, 3),
    "model.x_encoder.class_token": True,
    "model.x_encoder.registers": 2,
    "model.x_encoder.layer_scale": True,
    "model.x_encoder.gated": True,
    "model.x_encoder.resize": "cubic_antialiased",
}


jitted = partial(jax.jit, compiler_options=vl_jepa.QUICK)


def method_of(**overrides):
    return VLJEPA(vl_jepa.tiny(**{**TOWER, **overrides}))


def encode_all(method, params, video):
    return np.asarray(jitted(method.visual_tokens)({"x_encoder": params}, video))


def drawn(method):
    """Parameters that all count."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), vl_jepa.batch())[0]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.2 * rng.normal(size=s.shape).astype(s.dtype), shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(method_of())["x_encoder"]


@pytest.mark.slow
def test_a_few_steps_learn():
    only = {f"loss.{term}": 0.0 for term in ("sigreg_prediction", "sigreg_target", "regression")}
    method, data = method_of(**only), vl_jepa.batch()
    params = drawn(method)

    trained = {name: params.pop(name) for name in ("x_encoder", "predictor")}

    @jitted
    @jax.value_and_grad
    def loss(trained, rest):
        outputs, _ = method.represent({**trained, **rest}, None, {}, data, jax.random.key(1))
        return method.objective(outputs, jnp.int32(0))[0]

    losses = []
    for _ in range(6):
        value, gradient = loss(trained, params)
        losses.append(float(value))
        trained = jax.tree.map(lambda p, g: p - 0.05 * g, trained, gradient)
    assert all(after < before for before, after in itertools.pairwise(losses))
    # Every parameter of the tower has its part in it.
    moved = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient["x_encoder"])
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_the_train_step_takes_it():
    _, history = vl_jepa.run(1, steps=8, **TOWER)
    losses = history[:, 0]
    assert np.isfinite(history).all() and losses[-3:].mean() < losses[:3].mean()


@pytest.mark.slow
def test_a_mesh_that_cuts_everything_takes_the_same_steps():
    with jax.enable_x64(True):
        options = {"dtype": "float64", "steps": 2, **TOWER}
        _, one = vl_jepa.run(1, **options)
        _, many = vl_jepa.run(8, **options, **{"mesh.fsdp": 2, "mesh.tensor": 2})
    np.testing.assert_allclose(many, one, rtol=1e-9)


def test_a_mesh_cuts_every_matrix():
    shapes = drawn(method_of())
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2, "context": 1})
    method = method_of()
    found = partition.shardings(mesh, method.partition_table, shapes)["x_encoder"]
    for path in ("attention/qkv/kernel", "attention/out/kernel", "mlp/in/kernel", "mlp/out/kernel"):
        leaf = found["blocks"]
        for name in path.split("/"):
            leaf = leaf[name]
        assert {"fsdp", "tensor"} <= set(leaf.spec), path


def test_frames_are_encoded_one_by_one_in_their_order(params):
    method, video = method_of(), vl_jepa.batch()["video"]
    tokens = encode_all(method, params, video)
    assert tokens.shape == (vl_jepa.CLIPS, 4 * 2 * 2, 16)
    by_frame = tokens.reshape(vl_jepa.CLIPS, 4, 4, 16)
    turned = encode_all(method, params, video[:, ::-1]).reshape(by_frame.shape)
    np.testing.assert_allclose(turned[:, ::-1], by_frame, atol=1e-5)
    # A switch adds the frame's number, to every token alike.
    timed = encode_all(method_of(**{"model.x_encoder.temporal": "sincos"}), params, video)
    added = timed.reshape(by_frame.shape) - by_frame
    angles = np.arange(4)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(added, np.broadcast_to(expected[:, None], added.shape), atol=1e-5)


def test_pixels_are_normalised_as_the_tower_was_trained():
    frames = np.full((1, 1, 2, 2, 3), 255, np.uint8)
    expected = {
        "half": np.ones(3),
        "imagenet": (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225],
    }
    for name, pixel in expected.items():
        tower = method_of(**{"model.x_encoder.normalisation": name}).x_encoder
        found = x_encoders.read(tower, frames, "float32")
        np.testing.assert_allclose(found, np.broadcast_to(pixel, frames.shape), rtol=1e-6)


def test_frozen_it_is_cached_like_any_x_encoder(params):
    overrides = {"model.x_encoder.frozen": True, "model.x_encoder.cache_features": True}
    method, data = method_of(**overrides), vl_jepa.batch()
    part, encode, dtype = method.cached_video_tower()
    assert (part, dtype) == ("x_encoder", "float16")
    features = jitted(encode)(params, data["video"])
    cached = {**data, "video": {"features": features}}
    # Whatever begins the run, the parameters are the same.
    shapes, _ = jax.eval_shape(method.init, jax.random.key(0), data)
    again, _ = jax.eval_shape(method.init, jax.random.key(0), cached)
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, shapes)
    given = {"x_encoder": params}
    np.testing.assert_array_equal(method.visual_tokens(given, cached["video"]), features)
    assert method.requirements.frozen[0] == "x_encoder/.*"
    # Forward alone, frame by frame: patches, and blocks over them, a class token and registers.
    per_token = 2 * 16 * 3 * 16 + 2 * 16 * 16 + 3 * 2 * 16 * 64
    frame = 2 * 4 * (8 * 8 * 3) * 16 + 2 * (7 * per_token + 2 * 2 * 7 * 7 * 16)
    assert method.flops(data) - method.flops(cached) == vl_jepa.CLIPS * 4 * frame


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.x_encoder.kind": "picture"}, "kind is 'picture'; it can be video or image"),
        ({"model.x_encoder.tubelet": 4}, "tubelet is 4, for which kind='image' has no use"),
        ({"model.x_encoder.table_grid": ()}, "table_grid is .., but an image tower"),
        ({"model.x_encoder.table_grid": (2, 3, 3)}, "table_grid is .2, 3, 3., but an image"),
        ({"model.x_encoder.normalisation": "clip"}, "normalisation is 'clip'; it can be imagenet"),
        ({"model.x_encoder.kind": "video"}, r"\w+ is .*, for which kind='video' has no use"),
    ],
)
def test_a_section_that_cannot_be_is_refused_in_one_sentence(overrides, words):
    with pytest.raises(UserError, match=f"config.model.x_encoder.{words}"):
        method_of(**overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.x_encoder.resize": "nearest"}, "resize is 'nearest'"),
        ({"model.x_encoder.temporal": "learnt"}, "temporal is 'learnt'"),
        ({"model.x_encoder.patch": 7}, "frames are 16x16, which patch=7 cannot cut"),
    ],
)
def test_what_a_batch_shows_is_refused_too(overrides, words):
    with pytest.raises(UserError, match=words):
        method_of(**overrides).flops(vl_jepa.batch())
