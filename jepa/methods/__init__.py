"""One file a method. A config names its method by import path, for example
`jepa.methods.vl_jepa.VLJEPA`; a new method needs no other registration.
"""

from __future__ import annotations

import importlib

from ml_collections import ConfigDict

from jepa.errors import UserError
from jepa.methods.base import Method, Outputs, Requirements

__all__ = ["Method", "Outputs", "Requirements", "from_config"]


def from_config(config: ConfigDict) -> Method:
    """Builds the method that `config.method` names.

    Raises:
      UserError: the path cannot be imported.
    """
    module, _, name = config.method.rpartition(".")
    try:
        method_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"config.method is {config.method!r}, which cannot be imported ({error}); give the "
            "dotted path of a method class, such as 'jepa.methods.vl_jepa.VLJEPA'"
        ) from error
    return method_class(config)
