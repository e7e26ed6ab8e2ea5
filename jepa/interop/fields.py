"""Reading a `config.json`: every key that decides the function is used or must be what we compute.

What `transformers` writes beyond that (dropout, names, versions) does not change the function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jepa.errors import UserError

# Fields of modules that say how parameters begin, or no more than shapes do. How long texts may be
# is in the shape of a table of positions, and without one changes nothing.
_NO_FUNCTION = {"mask_token_init", "mlp_ratio", "max_length"}
_GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def tuples(content: Any) -> Any:
    """Returns what JSON gave with tuples for lists: the fields of our modules are hashed."""
    if isinstance(content, Mapping):
        return {name: tuples(value) for name, value in content.items()}
    return tuple(map(tuples, content)) if isinstance(content, list | tuple) else content


def of_module(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config's section as fields of modules, in which nothing is None instead of ()."""
    return {name: None if value == () else value for name, value in section.items()}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the first field in which two networks of the same shapes are not the same function.

    Args:
      ours: fields of the one; only those that both have are compared.
      theirs: of the other.

    Returns:
      The field's name and both values; None where they agree.
    """
    ours, theirs = of_module(ours), of_module(theirs)
    for name in sorted((ours.keys() & theirs.keys()) - _NO_FUNCTION):
        if ours[name] != theirs[name]:
            return name, ours[name], theirs[name]
    return None


class Config:
    """A `config.json` with the defaults of its model type."""

    def __init__(self, content: Mapping[str, Any], model_type: str, defaults: Mapping[str, Any]):
        """Takes the file's content.

        Raises:
          UserError: it is of another model type.
        """
        found = content.get("model_type")
        if found != model_type:
            raise UserError(
                f"config.json is of model_type {found!r}, not {model_type!r}; use another --model"
            )
        self._content = {**defaults, **content}

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def number(self, key: str) -> int:
        """Returns a positive whole number.

        Raises:
          UserError: it is absent or something else.
        """
        value = self._content.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"config.json: {key} is {value!r}; it must be a positive whole number")
        return value

    def ratio(self, key: str) -> float:
        """Returns a positive number.

        Raises:
          UserError: it is absent or something else.
        """
        value = self._content.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value is None or not 0 < value < math.inf:
            raise UserError(f"config.json: {key} is {value!r}; it must be a positive number")
        return float(value)

    def must(self, key: str, *allowed: Any) -> None:
        """Checks that a key has a value that our modules compute.

        Raises:
          UserError: it has another.
        """
        value = self._content.get(key)
        if value not in allowed:
            raise UserError(
                f"config.json: {key} is {value!r}; this model is computed here with "
                f"{' or '.join(map(repr, allowed))} only"
            )

    def gelu(self, key: str) -> str:
        """Returns our name of an activation.

        Raises:
          UserError: it is no GELU.
        """
        self.must(key, *_GELUS)
        return _GELUS[self._content[key]]
