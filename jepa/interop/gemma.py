"""EmbeddingGemma as Hugging Face publishes it: Gemma's text model, and folders with two maps.

Parameters of ours: `tower` (`models.gemma.EmbeddingGemma`). The maps behind the mean lie in folders
of their own, which `modules.json` names; a directory without that file is the text model alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_TYPE = "gemma3_text"
# Key of ours beside those of config.json: hidden width of the maps behind the mean.
DENSE_WIDTH = "jepa_dense_width"
_FOLDERS = ("2_Dense", "3_Dense")
# The type's defaults, which a config.json may leave out.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
    DENSE_WIDTH: None,
}
_THETA, _NEAR_THETA, _EVERY = 1e6, 1e4, 6


def open_directory(path: str | Path) -> Tensors:
    """Opens the text model together with its folders.

    Raises:
      UserError: a folder is missing, or holds something else than EmbeddingGemma's.
    """
    tensors, folders = sentence.open_directory(path, _TYPE)
    if not folders or tensors.config is None:
        return tensors
    if folders != _FOLDERS:
        raise UserError(
            f"{tensors.path}: modules.json names the maps {', '.join(folders) or 'none'}; "
            f"EmbeddingGemma has {' and '.join(_FOLDERS)}"
        )
    config = dict(tensors.config)
    name = f"{_FOLDERS[0]}/{sentence.WEIGHT}"
    if name in tensors:
        config[DENSE_WIDTH] = tensors.shape(name)[0]
    return tensors.with_config(config)


def _plan(content: Mapping[str, Any]) -> Plan:
    config = Config(content, _TYPE, _DEFAULTS)
    config.must("hidden_activation", "gelu_pytorch_tanh")
    config.must("attention_bias", False)
    config.must("attn_logit_softcapping", None)
    config.must("use_bidirectional_attention", True)
    of = decoders.sizes(config)
    theta, near_theta = _thetas(content)
    dense = None if config[DENSE_WIDTH] is None else config.number(DENSE_WIDTH)
    vocab = config.number("vocab_size")
    fields = {
        "vocab": vocab,
        "width": of.width,
        "depth": of.depth,
        "heads": of.heads,
        "kv_heads": of.kv_heads,
        "head_dim": of.head_dim,
        "mlp_width": of.mlp_width,
        "window": config.number("sliding_window"),
        "full_every": _full_every(content, of.depth),
        "theta": theta,
        "near_theta": near_theta,
        "query_scalar": float(config["query_pre_attn_scalar"]),
        "max_length": config.number("max_position_embeddings"),
        "dense_width": dense,
        "eps": float(config["rms_norm_eps"]),
    }
    prefix = decoders.prefix(content, "Gemma3ForCausalLM", "Gemma3TextModel")
    leaves = {
        **parts.under("table", parts.embedding(f"{prefix}embed_tokens", vocab, of.width)),
        **decoders.blocks(
            prefix, of, layers=(0, of.depth), norms=decoders.SANDWICH_NORMS, head_norms=True
        ),
        **parts.under("norm", parts.norm(f"{prefix}norm", of.width, bias=False)),
    }
    if dense is not None:
        sizes = ((of.width, dense), (dense, of.width))
        for ours, folder, (inputs, outputs) in zip(
            ("widen", "narrow"), _FOLDERS, sizes, strict=True
        ):
            matrix = parts.linear(f"{folder}/{sentence.NAME}", inputs, outputs, bias=False)
            leaves |= parts.under(ours, matrix)
    return Plan(Layout(parts.under(PART, leaves)), {PART: fields}, content)


def _thetas(content: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the rotary bases of layers that see all and of those that do not."""
    given = content.get("rope_parameters")
    if given is None:
        given = {
            "full_attention": {
                **(content.get("rope_scaling") or {}),
                "rope_theta": content.get("rope_theta", _THETA),
            },
            "sliding_attention": {"rope_theta": content.get("rope_local_base_freq", _NEAR_THETA)},
        }
    found = []
    for kind, default in (("full_attention", _THETA), ("sliding_attention", _NEAR_THETA)):
        theta, scaling = decoders.rotary({"rope_parameters": given.get(kind)}, default)
        if scaling is not None:
            raise UserError("config.json: rotary positions are rescaled; Gemma 3's are not here")
        found.append(theta)
    return found[0], found[1]


def _full_every(content: Mapping[str, Any], depth: int) -> int:
    """Returns every how manyth layer sees all tokens.

    Raises:
      UserError: the layers have no such order.
    """
    kinds = content.get("layer_types")
    if kinds is None:
        return int(
            content.get("_sliding_window_pattern", content.get("sliding_window_pattern", _EVERY))
        )
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else depth + 1
    if list(kinds) != _kinds(every, depth):
        raise UserError(
            "config.json: layer_types has another order than one 'full_attention' behind equally "
            f"many 'sliding_attention', for {depth} layers"
        )
    return every


def _kinds(every: int, depth: int) -> Sequence[str]:
    return [
        "sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(depth)
    ]


MODEL = Model(
    "embedding_gemma",
    "EmbeddingGemma: text tower, with its two maps behind the mean",
    _plan,
    open=open_directory,
    beside=sentence.BESIDE,
)
