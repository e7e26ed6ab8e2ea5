"""Text models at their published sizes with random weights: the same function, out and back."""

import gc

import hugging
import jax
import numpy as np
import pytest
import text_models
import torch
from transformers import (
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
)

from experiments import convert
from jepa.interop import converted
from jepa.interop import llama as llama_files
from jepa.models.gemma import EmbeddingGemma
from jepa.models.llama import VOCAB
from jepa.models.qwen import QwenEmbedding

pytestmark = pytest.mark.slow


def drawn(kind, config):
    """A model with the type's own first values, in float32."""
    torch.manual_seed(0)
    return kind._from_config(config, attn_implementation="eager").eval()


def texts(vocab, length):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, vocab, (2, length)).astype(np.int32)
    return ids, np.arange(length) < np.array([[length], [length // 2]])


def there_and_back(name, tmp_path):
    """Converts `published` both ways, checks every tensor, gives fields and parameters."""
    convert.convert(name, tmp_path / "published", tmp_path / "converted")
    convert.convert(name, tmp_path / "converted", tmp_path / "back")
    for folder in {file.parent for file in (tmp_path / "published").rglob("*.safetensors")}:
        again = tmp_path / "back" / folder.relative_to(tmp_path / "published")
        assert hugging.tensors(folder) == hugging.tensors(again)
    return (
        converted.about(tmp_path / "converted")["fields"],
        jax.device_put(converted.load(tmp_path / "converted")),
    )


def test_llama_3_2_1b(tmp_path):
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    theirs = drawn(LlamaForCausalLM, config)
    ids, _ = texts(VOCAB, 8)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids).long()).logits.numpy()
    theirs.save_pretrained(tmp_path / "published")
    del theirs
    gc.collect()
    fields, params = there_and_back("llama", tmp_path)
    module = llama_files.module(fields["decoder"])
    hugging.assert_close(jax.jit(module.apply)({"params": params["decoder"]}, ids), expected)


def test_embedding_gemma_300m(tmp_path):
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=768,
        intermediate_size=1152,
        num_hidden_layers=24,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=2048,
        sliding_window=512,
        use_bidirectional_attention=True,
    )
    theirs = drawn(Gemma3TextModel, config)
    matrices = text_models.maps(768, 3072)
    text_models.save_gemma(tmp_path / "published", theirs, matrices)
    ids, mask = texts(262144, 600)  # longer than the window
    hidden = text_models.hidden(theirs, ids, mask)
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    for matrix in matrices:
        mean = mean @ matrix.numpy().T
    fields, params = there_and_back("embedding_gemma", tmp_path)
    assert EmbeddingGemma(**fields["tower"]) == EmbeddingGemma()
    got = jax.jit(EmbeddingGemma().apply)({"params": params["tower"]}, ids, mask)
    hugging.assert_close(got, mean / np.linalg.norm(mean, axis=1, keepdims=True))


def test_qwen3_embedding_600m(tmp_path):
    config = Qwen3Config(
        vocab_size=151669,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    theirs = drawn(Qwen3Model, config)
    theirs.save_pretrained(tmp_path / "published")
    ids, mask = texts(151669, 24)
    last = text_models.hidden(theirs, ids, mask)[np.arange(2), mask.sum(1) - 1]
    fields, params = there_and_back("qwen3_embedding", tmp_path)
    assert QwenEmbedding(**fields["tower"]) == QwenEmbedding()
    got = jax.jit(QwenEmbedding().apply)({"params": params["tower"]}, ids, mask)
    hugging.assert_close(got, last / np.linalg.norm(last, axis=1, keepdims=True))
