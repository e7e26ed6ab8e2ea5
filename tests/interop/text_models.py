"""Tiny random text models of transformers, in the layout of their published directories."""

import json

import hugging
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from experiments import convert
from jepa.interop import converted

VOCAB, LENGTH = 40, 20
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    # Wavelengths lie on either side of both borders.
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 60,
}
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}


def batch(seed=0):
    """Ids and mask `[3, LENGTH]`, one text whole and two that end early."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCAB, (3, LENGTH)).astype(np.int32)
    return ids, np.arange(LENGTH) < np.array([[LENGTH], [13], [2]])


def llama(tied=True):
    """Llama of four layers, eight query heads over two."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=480,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters=dict(LLAMA3),
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    return hugging.randomise(model, scale=0.2)


def gemma(window=6, layers=4, every=3):
    """Gemma 3 looking both ways: more than one period, texts longer than the window."""
    kinds = [
        "sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)
    ]
    config = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=window,
        layer_types=kinds,
        query_pre_attn_scalar=5,
        max_position_embeddings=64,
        use_bidirectional_attention=True,
    )
    model = Gemma3TextModel._from_config(config, attn_implementation="eager")
    return hugging.randomise(model, scale=0.2)


def maps(width=24, hidden=48):
    """The two matrices behind the mean, `[hidden, width]` and `[width, hidden]`."""
    generator = torch.Generator().manual_seed(1)
    return (
        0.2 * torch.randn((hidden, width), generator=generator),
        0.2 * torch.randn((width, hidden), generator=generator),
    )


def save_gemma(directory, model, matrices):
    """Writes a directory as sentence-transformers lays it out."""
    model.save_pretrained(directory)
    steps = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    folders = ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{step}"}
        for i, (step, folder) in enumerate(zip(steps, folders, strict=True))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    about = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling/config.json").write_text(json.dumps(about))
    for folder, matrix in zip(("2_Dense", "3_Dense"), matrices, strict=True):
        (directory / folder).mkdir()
        save_file({"linear.weight": matrix}, directory / folder / "model.safetensors")
        about = {
            "in_features": matrix.shape[1],
            "out_features": matrix.shape[0],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        (directory / folder / "config.json").write_text(json.dumps(about))
    about = {"prompts": PROMPTS, "default_prompt_name": None}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(about))


def qwen(kind=Qwen3Model):
    """Qwen 3 of three layers with heads wider than the width's share."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    return hugging.randomise(kind._from_config(config, attn_implementation="eager"), scale=0.2)


def qwen_language_model():
    """The same with logits, whose names have a prefix."""
    return qwen(Qwen3ForCausalLM)


def bert():
    """A small BERT."""
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    return hugging.randomise(BertModel._from_config(config, attn_implementation="eager"), scale=0.2)


def hidden(model, ids, mask):
    """Their last hidden states, NumPy."""
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state
    return found.numpy()


def made(name, theirs, directory, **options):
    """Writes a model, converts it; gives parameters and fields of its one part, the directory."""
    if isinstance(theirs, Gemma3TextModel):
        save_gemma(directory / "published", theirs, maps())
    else:
        theirs.save_pretrained(directory / "published", **options)
    convert.convert(name, directory / "published", directory / "converted")
    fields = converted.about(directory / "converted")["fields"]
    params = converted.load(directory / "converted")
    return params, fields, directory
