"""A tiny one of every model, with inputs; for the tests that hold for all of them."""

from functools import partial

import jax
import jax.numpy as jnp

from jepa.models import flops
from jepa.models.gemma import EmbeddingGemma
from jepa.models.image_tower import ImageTower
from jepa.models.llama import Llama, LlamaStack
from jepa.models.minilm import MiniLM
from jepa.models.qwen import QwenEmbedding
from jepa.models.text import TextTransformer
from jepa.models.vit import VideoTransformer
from jepa.models.vl_jepa import Predictor, SharedHead

IDS = jnp.arange(16).reshape(2, 8) % 12
MASK = IDS > 1

# By name: the module, its inputs (floats take the type under test), its FLOPs for one example.
CASES = {
    "vit": (
        VideoTransformer(width=32, depth=2, heads=4, patch=4),
        (jax.random.normal(jax.random.key(0), (2, 4, 8, 12, 3)),),
        lambda m: flops.video_transformer(m, 4, 8, 12),
    ),
    "vit, six tokens": (
        VideoTransformer(width=32, depth=2, heads=4, patch=4, rope="tiled", scan=False),
        (
            jax.random.normal(jax.random.key(0), (2, 4, 8, 12, 3)),
            jnp.array([[0, 2, 4, 6, 8, 10]] * 2),
        ),
        lambda m: flops.video_transformer(m, 4, 8, 12, visible=6),
    ),
    "image tower": (
        ImageTower(width=32, depth=2, heads=4, patch=4, table_grid=(1, 2, 3), gelu="tanh"),
        (jax.random.normal(jax.random.key(0), (2, 4, 8, 12, 3)),),
        lambda m: flops.x_encoder(m, 4, 8, 12),
    ),
    # As DINOv2's giant, with registers.
    "image tower, gated": (
        ImageTower(
            width=32,
            depth=2,
            heads=4,
            patch=4,
            table_grid=(1, 2, 3),
            class_token=True,
            registers=2,
            layer_scale=True,
            gated=True,
            temporal="sincos",
        ),
        (jax.random.normal(jax.random.key(0), (2, 4, 8, 12, 3)),),
        lambda m: flops.x_encoder(m, 4, 8, 12),
    ),
    "llama": (
        LlamaStack(width=32, depth=3, heads=4, kv_heads=2, head_dim=6, mlp_width=48, causal=True),
        (jax.random.normal(jax.random.key(0), (2, 8, 32)),),
        lambda m: flops.llama(m, 8),
    ),
    "language model": (
        Llama(vocab=12, stack=partial(LlamaStack, width=32, depth=2, heads=4, mlp_width=48)),
        (IDS,),
        lambda m: flops.language_model(m, 8),
    ),
    "language model, untied": (
        Llama(
            vocab=12,
            stack=partial(LlamaStack, width=32, depth=2, heads=4, mlp_width=48, causal=True),
            tied=False,
        ),
        (IDS,),
        lambda m: flops.language_model(m, 8),
    ),
    "gemma": (
        EmbeddingGemma(
            vocab=12,
            width=32,
            depth=2,
            heads=3,
            kv_heads=1,
            head_dim=6,
            mlp_width=48,
            window=4,
            full_every=2,
            dense_width=40,
        ),
        (IDS, MASK),
        lambda m: flops.text_tower(m, 8),
    ),
    "qwen": (
        QwenEmbedding(vocab=12, width=32, depth=2, heads=4, kv_heads=2, head_dim=6, mlp_width=48),
        (IDS, MASK),
        lambda m: flops.text_tower(m, 8),
    ),
    "text": (
        TextTransformer(vocab=12, width=32, depth=2, heads=4, max_length=8),
        (IDS, MASK),
        lambda m: flops.text_tower(m, 8),
    ),
    "text, as CLIP's": (
        TextTransformer(
            vocab=12,
            width=32,
            depth=2,
            heads=4,
            max_length=8,
            causal=True,
            pool="last",
            projection=True,
            normalise=True,
        ),
        (IDS, MASK),
        lambda m: flops.text_tower(m, 8),
    ),
    "minilm": (
        MiniLM(vocab=12, width=32, depth=2, heads=4, mlp_width=48, max_length=8),
        (IDS, MASK),
        lambda m: flops.text_tower(m, 8),
    ),
    "predictor": (
        Predictor(width=32, depth=2, heads=4, mlp_width=48, features=8, vocab=12),
        (jax.random.normal(jax.random.key(0), (2, 12, 10)), IDS, MASK),
        lambda m: flops.predictor(m, visual_tokens=12, visual_width=10, query_length=8),
    ),
    "predictor, narrow table": (
        Predictor(
            width=32,
            depth=2,
            heads=4,
            kv_heads=2,
            mlp_width=48,
            features=8,
            vocab=12,
            table_width=6,
        ),
        (jax.random.normal(jax.random.key(0), (2, 12, 10)), IDS, MASK),
        lambda m: flops.predictor(m, visual_tokens=12, visual_width=10, query_length=8),
    ),
    "head": (
        SharedHead(8),
        (jax.random.normal(jax.random.key(0), (2, 32)),),
        lambda m: flops.shared_head(m, 32),
    ),
}


def cast(inputs, dtype):
    """The inputs with floats in `dtype`."""
    return tuple(x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs)
