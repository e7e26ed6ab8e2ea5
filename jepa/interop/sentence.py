"""Directories of sentence embeddings: a text model, what follows it, tokenizer and prompts.

`modules.json` names the steps from tokens to a vector, each with a folder:
https://sbert.net/docs/package_reference/sentence_transformer/SentenceTransformer.html.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jepa.errors import UserError
from jepa.interop.fields import Config
from jepa.interop.tensors import Tensors, open_tensors, read_json

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
# Name of a map's matrix in its folder.
NAME = "linear"
WEIGHT = f"{NAME}.weight"
_IDENTITY = "torch.nn.modules.linear.Identity"

# Files that belong to such a directory beside the tensors, and go with them where they are.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
BESIDE = (
    *TOKENIZER,
    MODULES,
    PROMPTS,
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "3_Dense/config.json",
)


def open_directory(
    path: str | Path, model_type: str, pooling: str = "mean_tokens"
) -> tuple[Tensors, tuple[str, ...]]:
    """Opens the tensors of a directory and of the linear maps that `modules.json` names.

    Args:
      path: the directory, or `model.safetensors` in it.
      model_type: of its `config.json`.
      pooling: how one vector is made of those of the tokens, as there: "mean_tokens", "lasttoken".

    Returns:
      The tensors, those of a map as `FOLDER/linear.weight`; and the maps' folders, in order.

    Raises:
      UserError: it is of another model type, a folder is missing or damaged, the pooling is
        another, or a map has a bias or an activation.
    """
    tensors = open_tensors(path)
    if tensors.config is not None:
        Config(tensors.config, model_type, {})
    listing = tensors.directory / MODULES
    # A file of another name is no model of that directory; it has no config.json either.
    if (tensors.path.is_file() and tensors.config is None) or not listing.is_file():
        return tensors, ()
    folders = []
    for module in _modules(listing):
        kind, folder = str(module.get("type")).rpartition(".")[2], str(module.get("path"))
        where = tensors.directory / folder
        if kind == "Pooling":
            _check_pooling(where / "config.json", pooling)
        elif kind == "Dense":
            _check_map(where / "config.json")
            tensors = tensors.beside(folder, open_tensors(where))
            folders.append(folder)
        elif kind not in ("Transformer", "Normalize"):
            raise UserError(f"{listing} names a step {kind!r}, unknown here")
    return tensors, tuple(folders)


def prompts(directory: str | Path) -> dict[str, str]:
    """Returns the prompts that a directory's own files name: texts that stand before another.

    Raises:
      UserError: it has none.
    """
    path = Path(directory) / PROMPTS
    found = read_json(path).get("prompts")
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UserError(f"{path} has no prompts; take the model's own file")
    return found


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise UserError(f"{path} holds no list of modules; take the model's own file")
    return found


def _check_pooling(path: Path, wanted: str) -> None:
    about = read_json(path)
    chosen = {
        key.removeprefix("pooling_mode_")
        for key, value in about.items()
        if key.startswith("pooling_mode_") and value is True
    } or {str(about.get("pooling_mode"))}
    if chosen not in ({wanted}, {wanted.removesuffix("_tokens")}):
        raise UserError(
            f"{path} pools by {', '.join(sorted(chosen))}; this model is computed here with "
            f"{wanted} only"
        )
    if about.get("include_prompt", True) is not True:
        raise UserError(f"{path}: include_prompt is False; the mean is over all tokens here")


def _check_map(path: Path) -> None:
    about = read_json(path)
    for key, wanted in (("bias", False), ("activation_function", _IDENTITY)):
        if about.get(key) != wanted:
            raise UserError(
                f"{path}: {key} is {about.get(key)!r}; maps are computed here with {wanted!r}"
            )
