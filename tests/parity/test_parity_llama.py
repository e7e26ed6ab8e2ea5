"""The predictor's blocks against the Llama of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_weights
from transformers import LlamaConfig, LlamaModel

from jepa.models.llama import LlamaStack
from jepa.nn.rotary import LongContext

WIDTH, DEPTH, HEADS, KV_HEADS, HIDDEN, THETA = 32, 3, 8, 2, 48, 1000.0
# Wavelengths of the head's two frequencies, 6 and 200, lie on either side of the borders.
SCALING = LongContext(factor=8.0, low=1.0, high=4.0, original_length=400)


def published(scaling):
    rope = {"rope_type": "default", "rope_theta": THETA}
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": THETA,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original_length,
        }
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=3200,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        attn_implementation="eager",
    )
    return torch_weights.randomise(LlamaModel(config))


def parameters(weights):
    layers = []
    for i in range(DEPTH):
        name = f"layers.{i}"
        parts = [f"{name}.self_attn.{part}_proj" for part in "qkvo"]
        layers.append(
            {
                "norm1": torch_weights.norm(weights, f"{name}.input_layernorm"),
                "attention": torch_weights.attention(
                    weights, *parts, heads=HEADS, kv_heads=KV_HEADS
                ),
                "norm2": torch_weights.norm(weights, f"{name}.post_attention_layernorm"),
                "mlp": {
                    "gate": torch_weights.linear(weights, f"{name}.mlp.gate_proj"),
                    "in": torch_weights.linear(weights, f"{name}.mlp.up_proj"),
                    "out": torch_weights.linear(weights, f"{name}.mlp.down_proj"),
                },
            }
        )
    return {
        "blocks": torch_weights.stack(layers),
        "norm": torch_weights.norm(weights, "norm"),
    }


def ours(**options):
    return LlamaStack(
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        kv_heads=KV_HEADS,
        mlp_width=HIDDEN,
        theta=THETA,
        **options,
    )


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).normal(size=(2, 9, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("scaling", [None, SCALING])
def test_causal_stack(tokens, scaling):
    model = published(scaling)
    variables = {"params": parameters(torch_weights.arrays(model))}
    positions = np.arange(9) * 40
    with torch.no_grad():
        expected = model(
            inputs_embeds=torch.tensor(tokens), position_ids=torch.tensor(positions)[None]
        ).last_hidden_state
    module = ours(causal=True, scaling=scaling)
    got = module.apply(variables, tokens, positions=jnp.asarray(positions))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    if scaling is not None:
        plain = ours(causal=True).apply(variables, tokens, positions=jnp.asarray(positions))
        assert np.abs(plain - got).max() > 1e-2


def test_rescaled_frequencies():
    # Llama-3.2-1B's own numbers: 32 frequencies, three regimes.
    model = LlamaConfig(
        hidden_size=2048,
        num_attention_heads=32,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from jepa.nn.rotary import rotary_1d

    expected = LlamaRotaryEmbedding(model).inv_freq.numpy()
    tables = rotary_1d(jnp.ones(1), 64, theta=500000.0, scaling=LongContext())
    np.testing.assert_allclose(tables.cos[0, 0, 0, :32], np.cos(expected), atol=1e-6)
    np.testing.assert_allclose(tables.sin[0, 0, 0, 32:], np.sin(expected), atol=1e-6)


def test_looking_both_ways_past_pads(tokens):
    model = published(None)
    variables = {"params": parameters(torch_weights.arrays(model))}
    mask = np.ones((2, 9), bool)
    mask[1, 3:5] = mask[1, 8:] = False
    bias = torch.where(torch.tensor(mask)[:, None, None, :].expand(2, 1, 9, 9), 0.0, -1e30)
    with torch.no_grad():
        expected = model(
            inputs_embeds=torch.tensor(tokens), attention_mask=bias
        ).last_hidden_state.numpy()
    got = ours().apply(variables, tokens, mask=jnp.asarray(mask))
    np.testing.assert_allclose(np.asarray(got)[mask], expected[mask], atol=1e-4)
    causal = ours(causal=True).apply(variables, tokens, mask=jnp.asarray(mask))
    assert np.abs(causal - got).max() > 1e-2
