"""The published text towers that may be VL-JEPA's Y-encoder: sizes, weights, tokenizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jepa.errors import UserError
from jepa.interop import minilm, starting
from jepa.models.flops import TextTower
from jepa.models.gemma import EmbeddingGemma
from jepa.models.minilm import MiniLM
from jepa.models.qwen import QWENS, QwenEmbedding
from jepa.models.text import PE_TEXTS, TextTransformer

SCRATCH = "transformer"
MINILM = "minilm"
_WEIGHTS = "config.model.y_encoder.weights"
# Fields of modules that say how they are computed.
_NO_FUNCTION = ("dtype", "param_dtype", "remat", "scan", "parent", "name")
# Tokenizers know a few tokens (of images, of tools) that stand in no text and in no table, and
# tables a few that no tokenizer gives.
_SPARE = 8


@dataclasses.dataclass(frozen=True)
class Published:
    """A published tower.

    Attributes:
      module: its class.
      model: by which `interop.registry` knows its files.
      fields: of the class, where they differ from its defaults.
    """

    module: Any
    model: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# By the name that `config.model.y_encoder.tower` gives.
TOWERS: Mapping[str, Published] = {
    MINILM: Published(MiniLM, "minilm"),
    "embedding_gemma": Published(EmbeddingGemma, "embedding_gemma"),
    "qwen3_embedding_0.6b": Published(
        QwenEmbedding, "qwen3_embedding", QWENS["qwen3-embedding-0.6b"]
    ),
    "qwen3_embedding_4b": Published(QwenEmbedding, "qwen3_embedding", QWENS["qwen3-embedding-4b"]),
    "qwen3_embedding_8b": Published(QwenEmbedding, "qwen3_embedding", QWENS["qwen3-embedding-8b"]),
    **{name: Published(TextTransformer, "pe_text", of) for name, of in PE_TEXTS.items()},
}


def make(config: ConfigDict, types: Mapping[str, Any]) -> TextTower:
    """Returns the tower that the section `model.y_encoder` describes.

    Args:
      config: the section.
      types: `dtype` and `param_dtype`.

    Raises:
      UserError: there is no such tower, or maps are left out of one that has none.
    """
    if config.tower == SCRATCH:
        sizes = {name: config[name] for name in ("vocab", "width", "depth", "heads")}
        return TextTransformer(**sizes, remat=config.remat, **types)
    if config.tower not in TOWERS:
        raise UserError(
            f"config.model.y_encoder.tower is {config.tower!r}; use {SCRATCH!r} or one of "
            f"{', '.join(map(repr, TOWERS))}"
        )
    published = TOWERS[config.tower]
    fields = dict(published.fields)
    if not config.dense_layers:
        if published.module is not EmbeddingGemma:
            raise UserError(
                f"config.model.y_encoder.dense_layers is False, but the tower {config.tower!r} has "
                "none to leave out; set it to True"
            )
        fields["dense_width"] = None
    made: TextTower = published.module(**fields, remat=config.remat, **types)
    return made


def fields_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of the tower that the section `model.y_encoder` describes.

    Those that change neither parameters nor function are left out.
    """
    tower = make(config, {})
    names = (field.name for field in dataclasses.fields(tower))
    return {name: getattr(tower, name) for name in names if name not in _NO_FUNCTION}


def weights(config: ConfigDict, tower: TextTower) -> dict[str, Any] | None:
    """Returns the tower's published weights, if the config has any.

    Args:
      config: the section `model.y_encoder`.
      tower: made of it.

    Returns:
      A nested dict of NumPy arrays or `loading.Pending`.

    Raises:
      UserError: there are none, or they are of another network.
    """
    if config.tower == SCRATCH:
        return None
    if not config.weights:
        return minilm.load_params() if config.tower == MINILM else None
    start = starting.find(config.weights, TOWERS[config.tower].model, minilm.PART, _WEIGHTS)
    said = dict(start.fields)
    params = dict(start.params)
    if isinstance(tower, EmbeddingGemma) and tower.dense_width is None:
        del said["dense_width"]
        params = {name: tree for name, tree in params.items() if name not in ("widen", "narrow")}
    if "positions" not in params:
        # Rotary positions have no table: how long texts were changes neither shapes nor function.
        said.pop("max_length", None)
    pairs = {name: (getattr(tower, name), value) for name, value in said.items()}
    starting.agree(start, _WEIGHTS, pairs)
    return params


def check(config: ConfigDict, data: ConfigDict) -> None:
    """Checks that a frozen tower has something to keep, and that texts get its own tokens.

    Args:
      config: the section `model.y_encoder`.
      data: the section `data`.

    Raises:
      UserError: one of them is not so.
    """
    has_weights = config.tower == MINILM or (config.tower != SCRATCH and config.weights)
    if config.weights and config.tower == SCRATCH:
        raise UserError(
            f"{_WEIGHTS} is {config.weights!r}, but the tower {SCRATCH!r} is trained from scratch; "
            "leave it empty, or choose another tower"
        )
    if config.frozen and not has_weights:
        raise UserError(
            f"config.model.y_encoder.frozen is True, but the tower {config.tower!r} has no "
            "published weights to keep; "
            + ("set it to False" if config.tower == SCRATCH else f"set {_WEIGHTS}, or it to False")
        )
    named = data.get("tokenizer", MINILM)
    if config.tower not in (SCRATCH, MINILM) and named in (MINILM, "dataset"):
        raise UserError(
            f"config.data.tokenizer is {named!r}, but the tower {config.tower!r} reads tokens of "
            f"its own; set it to the directory with its tokenizer.json"
        )


def own(size: int, entries: int) -> bool:
    """Returns whether a tokenizer's number of ids may be that of a published table."""
    return abs(size - entries) <= _SPARE


def check_vocabulary(config: ConfigDict, tower: TextTower, size: int) -> None:
    """Checks a tokenizer's number of ids against the tower's table.

    Raises:
      UserError: it has more, or is not the published tower's own.
    """
    entries = tower.vocab
    if config.tower == SCRATCH and size > entries:
        raise UserError(
            f"config.model.y_encoder.vocab is {entries}, but the tokenizer of the stream 'text' "
            f"has {size} ids; set it to at least {size}"
        )
    if config.tower == MINILM and size > entries:
        raise UserError(
            f"data.tokenizer has {size} ids, and MiniLM's table {entries}; set it to 'minilm'"
        )
    if config.tower not in (SCRATCH, MINILM) and not own(size, entries):
        raise UserError(
            f"data.tokenizer has {size} ids, and the table of {config.tower!r} {entries}; set it "
            "to the directory with its own tokenizer.json"
        )
