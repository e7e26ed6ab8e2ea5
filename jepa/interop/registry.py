"""The published models that convert, by name.

A model is a file of this package with one `Model`, and one line in `_WHERE`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from jepa.errors import UserError
from jepa.interop.layout import Layout
from jepa.interop.tensors import Tensors


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one checkpoint of a model is.

    Attributes:
      layout: which of its tensors make up which parameter of ours.
      fields: the fields of our modules, by the parameters' first name
        (`{"encoder": {"width": 1024, ...}, ...}`).
      config: its `config.json`.
    """

    layout: Layout
    fields: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
      name: by which `experiments.convert` knows it.
      says: what it is, in a line.
      plan: gives the plan of a `config.json`. Raises UserError where our modules cannot be that.
      infer: gives what stands for a `config.json` in a checkpoint that has none, from its tensors;
        None where there always is one.
    """

    name: str
    says: str
    plan: Callable[[Mapping[str, Any]], Plan]
    infer: Callable[[Tensors], Mapping[str, Any]] | None = None

    def plan_of(self, tensors: Tensors) -> Plan:
        """Returns the plan of an opened checkpoint.

        Raises:
          UserError: it has no `config.json` and needs one, or is of another model.
        """
        if tensors.config is not None:
            return self.plan(tensors.config)
        if self.infer is None:
            raise UserError(f"{tensors.path} has no config.json beside it, which {self.name} needs")
        return self.plan(self.infer(tensors))


# Module of this package and attribute, by name.
_WHERE: Mapping[str, tuple[str, str]] = {
    "v_jepa_2": ("v_jepa_2", "MODEL"),
    "v_jepa_2_classifier": ("v_jepa_2", "CLASSIFIER"),
}


def names() -> tuple[str, ...]:
    """Returns the names of all models."""
    return tuple(sorted(_WHERE))


def model(name: str) -> Model:
    """Returns a model.

    Raises:
      UserError: there is none of that name.
    """
    if name not in _WHERE:
        raise UserError(f"there is no model {name!r}; --list shows those there are")
    module, attribute = _WHERE[name]
    found = getattr(importlib.import_module(f"jepa.interop.{module}"), attribute)
    assert isinstance(found, Model)
    return found
