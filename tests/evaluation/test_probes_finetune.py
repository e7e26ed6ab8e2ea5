"""Fine-tuning: rates by layer, and an encoder that is only as good as what moves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import probes_features, probes_finetune
from jepa.evaluation.probes_finetune import FineTuner, Options
from jepa.models.vit import VideoTransformer
from jepa.nn.frames import to_float
from jepa.parallel import mesh as meshes
from tests.evaluation import probe_toy


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh({}, jax.devices()[:1])


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def data(tmp_path):
    probe_toy.write(tmp_path / "set")
    return DataConfig.parse({"path": f"idx:{tmp_path / 'set'}", "frames": 1, "size": 8})


def one_number(start):
    """An encoder of one number, the mean of the picture times its only parameter."""

    def apply(arguments, video):
        weight = arguments[0]["encoder"]["kernel"]
        halves = to_float(video)[:, 0, :, :4], to_float(video)[:, 0, :, 4:]
        bright = jnp.stack([x.mean(axis=(1, 2, 3)) for x in halves], axis=1)
        return {"pooled": bright @ weight}

    params = {"encoder": {"kernel": jnp.asarray(start, jnp.float32)}, "other": {"a": jnp.ones(3)}}
    return probes_features.Encoder("toy", "d", (params, {}), apply)


def test_rates_fall_from_the_head_to_the_pixels():
    encoder = VideoTransformer(width=12, depth=3, heads=2, patch=4, tubelet=1)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))["params"]
    found = probes_finetune.rates(shapes, 0.5)
    # Layers from below: the tokens 0, the blocks 1 to 3, the last norm with the head 4.
    assert float(found["patches"]["kernel"]) == 0.5**4
    blocks = found["blocks"]["mlp"]["in"]["kernel"]
    assert blocks.shape == (3, 1, 1) and blocks.ravel().tolist() == [0.5**3, 0.5**2, 0.5]
    assert float(found["norm"]["scale"]) == 1.0
    for factor, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(shapes), strict=True):
        assert jnp.broadcast_shapes(factor.shape, leaf.shape) == leaf.shape
    with pytest.raises(UserError, match="no stack of 'blocks'"):
        probes_finetune.rates({"kernel": jnp.ones((2, 2))}, 0.5)


def test_the_encoder_learns_what_its_frozen_features_lack(data, mesh):
    # Both features are the brightness of the left half: the right one's class cannot be told.
    encoder = one_number([[1.0, 1.0], [0.0, 0.0]])
    before = jax.tree.map(np.array, encoder.arguments)
    numbers, labels = np.arange(60), np.arange(60) % 3

    def accuracy(**changes):
        options = Options(epochs=40, batch_size=15, label_smoothing=0.0, **changes)
        tuner = FineTuner(encoder, data, classes=3, options=options, mesh=mesh)
        weights = tuner.train("train", numbers, labels, rate=0.1, seed=0)
        said = tuner.logits(weights, "test", np.arange(40)).argmax(axis=1)
        return (said == np.arange(40) % 3).mean(), weights

    hits, weights = accuracy(layer_decay=1.0)
    assert hits > 0.95
    assert np.abs(np.asarray(weights["encoder"]["kernel"])[1]).max() > 0.01
    # The encoder that was given is whole, and a second run starts from it again.
    again, _ = accuracy(layer_decay=1.0)
    assert again == hits
    jax.tree.map(np.testing.assert_array_equal, encoder.arguments, before)


def test_what_cannot_be_tuned_is_refused(data, mesh):
    pixels = probes_features.of_pixels(8, grey=True)
    with pytest.raises(UserError, match="has no parameters called encoder or x_encoder"):
        FineTuner(pixels, data, classes=3, options=Options(), mesh=mesh)
    encoder = one_number(np.eye(2))
    with pytest.raises(UserError, match="layer_decay to 1"):
        FineTuner(encoder, data, classes=3, options=Options(), mesh=mesh)


def test_the_rate_rises_then_falls_to_nothing():
    shape = [probes_finetune._shape(step, 40) for step in range(41)]
    assert shape[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shape[4] == 1.0 and shape[40] == pytest.approx(0.0)
    assert all(a >= b for a, b in zip(shape[4:], shape[5:], strict=False))
