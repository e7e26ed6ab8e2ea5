"""The encoder against the published implementation of V-JEPA 2 in transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_weights
from transformers import VJEPA2Config, VJEPA2Model

from jepa.models.vit import VideoTransformer

# An odd grid of 3x3, and heads of 20 channels, two of which are not turned.
PATCH, SIZE, FRAMES, WIDTH, DEPTH, HEADS = 8, 24, 6, 40, 3, 2


def parameters(weights):
    layers = []
    for i in range(DEPTH):
        name = f"encoder.layer.{i}"
        parts = [f"{name}.attention.{part}" for part in ("query", "key", "value", "proj")]
        layers.append(
            {
                "norm1": torch_weights.norm(weights, f"{name}.norm1"),
                "attention": torch_weights.attention(weights, *parts, heads=HEADS, kv_heads=HEADS),
                "norm2": torch_weights.norm(weights, f"{name}.norm2"),
                "mlp": {
                    "in": torch_weights.linear(weights, f"{name}.mlp.fc1"),
                    "out": torch_weights.linear(weights, f"{name}.mlp.fc2"),
                },
            }
        )
    patches = "encoder.embeddings.patch_embeddings.proj"
    return {
        "patches": {
            "kernel": weights[f"{patches}.weight"].transpose(2, 3, 4, 1, 0),
            "bias": weights[f"{patches}.bias"],
        },
        "blocks": torch_weights.stack(layers),
        "norm": torch_weights.norm(weights, "encoder.layernorm"),
    }


@pytest.fixture(scope="module")
def published():
    config = VJEPA2Config(
        patch_size=PATCH,
        crop_size=SIZE,
        frames_per_clip=FRAMES,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=DEPTH,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    return torch_weights.randomise(VJEPA2Model(config))


@pytest.fixture(scope="module")
def ours(published):
    module = VideoTransformer(
        width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, tubelet=2, rope="tiled"
    )
    return module, {"params": parameters(torch_weights.arrays(published))}


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_every_hidden_state(published, ours, frames):
    module, variables = ours
    video = np.random.default_rng(0).normal(size=(2, frames, SIZE, SIZE, 3)).astype(np.float32)
    hidden = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: hidden.append(out[0]))
        for layer in published.encoder.layer
    ]
    with torch.no_grad():
        last = published.get_vision_features(torch.tensor(video.transpose(0, 1, 4, 2, 3).copy()))
    for hook in hooks:
        hook.remove()
    taps = tuple(range(1, DEPTH + 1))
    tokens, levels = module.apply(variables, jnp.asarray(video), None, taps, method="levels")
    assert len(hidden) == DEPTH
    for got, expected in zip(levels, hidden, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(tokens, last, atol=1e-4)
    # What is compared has structure: tokens differ from one another.
    assert np.std(np.asarray(tokens), axis=1).mean() > 0.1


def test_the_other_rotary_form_differs(ours):
    module, variables = ours
    video = jax.random.normal(jax.random.key(0), (1, 2, SIZE, SIZE, 3))
    rotation = jax.jit(module.clone(rope="rotation").apply)(variables, video)
    assert jnp.abs(rotation - jax.jit(module.apply)(variables, video)).max() > 1e-2
