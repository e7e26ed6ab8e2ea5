"""Qwen3-Embedding as Hugging Face publishes it: files of the bare model under the other's name.

Parameters of ours: `tower` (`models.qwen.QwenEmbedding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.errors import UserError
from jepa.interop import decoders, sentence
from jepa.interop import layout as parts
from jepa.interop.fields import Config
from jepa.interop.layout import Layout
from jepa.interop.registry import Model, Plan
from jepa.interop.tensors import Tensors

PART = "tower"
_TYPE = "qwen3"
# The type's defaults, which a config.json may leave out.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_sliding_window": False,
}
_THETA = 10000.0
_BARE, _LANGUAGE_MODEL = "Qwen3Model", "Qwen3ForCausalLM"


def open_directory(path: str | Path) -> Tensors:
    """Opens a directory; names of tensors say which architecture it is.

    Raises:
      UserError: nothing usable is there, or its embedding is no last token.
    """
    tensors, maps = sentence.open_directory(path, _TYPE, "lasttoken")
    if maps:
        raise UserError(
            f"{tensors.path}: modules.json names the maps {', '.join(maps)}; Qwen3-Embedding has "
            "none"
        )
    if tensors.config is None or "embed_tokens.weight" not in tensors:
        return tensors
    return tensors.with_config({**tensors.config, "architectures": [_BARE]})


def _plan(content: Mapping[str, Any]) -> Plan:
    config = Config(content, _TYPE, _DEFAULTS)
    config.must("hidden_act", "silu")
    config.must("attention_bias", False)
    config.must("use_sliding_window", False)
    of = decoders.sizes(config)
    theta, scaling = decoders.rotary(content, _THETA)
    if scaling is not None:
        raise UserError("config.json: rotary positions are rescaled, as in no Qwen3-Embedding")
    prefix = decoders.prefix(content, _LANGUAGE_MODEL, _BARE)
    table = parts.embedding(f"{prefix}embed_tokens", config.number("vocab_size"), of.width)
    llama = {
        **decoders.blocks(
            prefix, of, layers=(0, of.depth), norms=decoders.PRE_NORMS, head_norms=True
        ),
        **parts.under("norm", parts.norm(f"{prefix}norm", of.width, bias=False)),
    }
    leaves = {**parts.under("table", table), **parts.under("llama", llama)}
    fields = {
        "vocab": config.number("vocab_size"),
        "width": of.width,
        "depth": of.depth,
        "heads": of.heads,
        "kv_heads": of.kv_heads,
        "head_dim": of.head_dim,
        "mlp_width": of.mlp_width,
        "theta": theta,
        "max_length": config.number("max_position_embeddings"),
        "eps": float(config["rms_norm_eps"]),
    }
    # An embedding has no use for logits, whose matrix is left behind.
    ignored = (r"lm_head\.weight",) if prefix else ()
    return Plan(Layout(parts.under(PART, leaves), ignored=ignored), {PART: fields}, content)


MODEL = Model(
    "qwen3_embedding",
    "Qwen3-Embedding: text tower",
    _plan,
    open=open_directory,
    beside=sentence.BESIDE,
)
