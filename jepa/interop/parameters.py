"""Parameters as one safetensors file, an array a path: how encoders go from one run into another.

Source of the format: https://github.com/huggingface/safetensors. Names are the `/`-joined paths of
the parameter tree, so a file is read without knowing who wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jepa.errors import UserError


def save(path: str | Path, params: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Writes a tree of parameters; the file appears under its name when it is whole.

    Args:
      path: where to; its directory is made.
      params: nested dict of arrays that this process can read.
      about: where they come from, kept in the file's header.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    arrays = {name: np.ascontiguousarray(array) for name, array in _paths(params).items()}
    save_file(arrays, partial, dict(about))
    os.replace(partial, path)


def load(path: str | Path) -> dict[str, Any]:
    """Returns the tree of NumPy arrays that `save` wrote.

    Raises:
      UserError: the file is absent or no safetensors file.
    """
    tree: dict[str, Any] = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                *parents, leaf = name.split("/")
                branch = tree
                for parent in parents:
                    branch = branch.setdefault(parent, {})
                branch[leaf] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error})") from error
    return tree


def _paths(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found.update(_paths(value, f"{prefix}{name}/"))
        else:
            found[f"{prefix}{name}"] = value
    return found
