"""A `config.json` of our own, for what `transformers` lacks: a section for each network.

Keys are the fields of our modules. What a file or `--set` says is checked before any shape is
computed from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jepa.errors import UserError
from jepa.models.text import POOLS
from jepa.models.vit import ROPES
from jepa.nn.positions import POSITIONS

_Rule = tuple[Callable[[Any], bool], str]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _wholes(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_whole, value))


def _grid(value: Any) -> bool:
    return value is None or (_wholes(value) and len(value) == 3)


def _rising(value: Any) -> bool:
    return _wholes(value) and list(value) == sorted(set(value))


def _one_of(*choices: str) -> _Rule:
    return lambda value: value in choices, " or ".join(map(repr, choices))


_WHOLE: _Rule = (_whole, "a positive whole number")
_NUMBER: _Rule = (_positive, "a positive number")
_OPTIONAL: _Rule = (lambda value: value is None or _whole(value), "a positive whole number or null")
_FLAG: _Rule = (lambda value: isinstance(value, bool), "true or false")
_SIZES = ("width", "depth", "heads", "patch", "tubelet", "features", "mask_tokens")
_TEXT_SIZES = ("vocab", "max_length", "classes")
_FLAGS = (
    *("image_tokenizer", "predicts_context", "modalities"),
    *("causal", "projection", "normalise"),
)
# What the fields that shapes and functions follow from can be, of whichever network.
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys((*_SIZES, *_TEXT_SIZES), _WHOLE),
    **dict.fromkeys(("mlp_ratio", "eps"), _NUMBER),
    **dict.fromkeys(("pretrain_grid", "embed_hidden"), _OPTIONAL),
    **dict.fromkeys(_FLAGS, _FLAG),
    "table_grid": (_grid, "three positive whole numbers or null"),
    "taps": (_rising, "a list of rising numbers of layers, such as [6,12,18,24]"),
    "gelu": _one_of("exact", "tanh"),
    "mask_token_init": _one_of("zeros", "normal"),
    "rope": _one_of(*ROPES),
    "positions": _one_of(*POSITIONS),
    "pool": _one_of(*POOLS),
}


def section(
    config: Mapping[str, Any], name: str, needed: Iterable[str], by: str = "config.json"
) -> Mapping[str, Any]:
    """Returns the fields of a network.

    Args:
      config: the file's content.
      name: of the section ("encoder").
      needed: keys that it must have.
      by: what said the values, for the errors.

    Raises:
      UserError: the section or one of the keys is missing, or a value is of another type or out of
        range.
    """
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise UserError(f"{by}: there is no section {name!r}; take the model's own file")
    for key in needed:
        if key not in found:
            raise UserError(f"{by}: {name}.{key} is missing; take the model's own file")
    for key, value in found.items():
        allowed, what = _RULES.get(key, (None, ""))
        if allowed is not None and not allowed(value):
            raise UserError(f"{by}: {name}.{key} is {value!r}; it must be {what}")
    return found
