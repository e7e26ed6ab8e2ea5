"""The published models that convert, by name.

A model is a file of this package with one `Model`, and one line in `_WHERE`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jepa.errors import UserError
from jepa.interop.layout import Layout
from jepa.interop.tensors import Tensors, open_tensors


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
class Settings:
    """What a user says of a checkpoint that has no `config.json`.

    Attributes:
      branch: which of several networks in it to take ("encoder"); None for the model's choice.
      values: of keys of what stands for its `config.json`, by "."-joined path.
    """

    branch: str | None = None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def apply(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a config with the values in their places.

        Raises:
          UserError: there is no such key, or it is of another type.
        """
        settled = copy.deepcopy(dict(config))
        for path, value in self.values.items():
            *parents, name = path.split(".")
            section: Any = settled
            for parent in parents:
                section = section.get(parent) if isinstance(section, dict) else None
            if not isinstance(section, dict) or name not in section:
                keys = ", ".join(section) if isinstance(section, dict) else ", ".join(settled)
                raise UserError(f"--set {path}: there is no such key; there are {keys}")
            # What of a section may be absent is checked with it.
            if not _alike(section[name], value) and not (parents and value is None):
                raise UserError(
                    f"--set {path}={value!r}: it must be of the kind of {section[name]!r}"
                )
            section[name] = value
        return settled


def _alike(old: Any, new: Any) -> bool:
    """Returns whether a value can take the place of another, as far as their types tell."""
    if old is None:
        return True
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, float):
        return isinstance(new, int | float) and math.isfinite(new)
    return isinstance(new, list | tuple if isinstance(old, list | tuple) else type(old))


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
      name: by which `experiments.convert` knows it.
      says: what it is, in a line.
      plan: gives the plan of a `config.json`. Raises UserError where our modules cannot be that.
      infer: gives the plan of a checkpoint without one, from its tensors and what the user says;
        None where there always is one.
      describe: gives the `config.json` of networks of ours with these fields, by name, so that what
        was trained here can be published; None for a key that the user has to say. Raises UserError
        where the published model cannot be that. Itself None where runs train no such model.
      open: opens a checkpoint; for models whose tensors lie in several places.
      beside: names of files that go with the tensors, where they are (a tokenizer's).
    """

    name: str
    says: str
    plan: Callable[[Mapping[str, Any]], Plan]
    infer: Callable[[Tensors, Settings], Plan] | None = None
    describe: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    open: Callable[[Path], Tensors] = open_tensors
    beside: tuple[str, ...] = ()

    def plan_of(self, tensors: Tensors, settings: Settings | None = None) -> Plan:
        """Returns the plan of an opened checkpoint.

        Raises:
          UserError: it has no `config.json` and needs one, is of another model, or settings are
            given of what its `config.json` says.
        """
        if tensors.config is not None:
            if settings is not None and (settings.branch or settings.values):
                raise UserError(
                    f"{tensors.path} has a config.json, which says what --set and --branch would; "
                    "leave them out"
                )
            return self.plan(tensors.config)
        if self.infer is None:
            raise UserError(f"{tensors.path} has no config.json beside it, which {self.name} needs")
        return self.infer(tensors, settings or Settings())


# Module of this package and attribute, by name.
_WHERE: Mapping[str, tuple[str, str]] = {
    "dinov2": ("image_towers", "DINOV2"),
    "embedding_gemma": ("gemma", "MODEL"),
    "llama": ("llama", "MODEL"),
    "minilm": ("minilm", "MODEL"),
    "pe_text": ("pe_text", "MODEL"),
    "qwen3_embedding": ("qwen", "MODEL"),
    "siglip": ("image_towers", "SIGLIP"),
    "vit": ("image_towers", "VIT"),
    "i_jepa": ("v_jepa", "I_JEPA"),
    "v_jepa": ("v_jepa", "V_JEPA"),
    "v_jepa_2": ("v_jepa_2", "MODEL"),
    "v_jepa_2_classifier": ("v_jepa_2", "CLASSIFIER"),
    "v_jepa_2_probe": ("v_jepa_2_probe", "MODEL"),
    "v_jepa_2_1": ("v_jepa_2_1", "MODEL"),
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
