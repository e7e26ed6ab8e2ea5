"""Parameters as one safetensors file, an array a path: how encoders go from one run into another.

Source of the format: https://github.com/huggingface/safetensors. Names are the `/`-joined paths of
the parameter tree, so a file is read without knowing who wrote it. Wherever such a file is read, a
directory of `experiments.convert` will do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jepa.errors import UserError
from jepa.interop import converted, layout, loading
from jepa.interop.tensors import open_tensors

# What a converted directory calls the network that `experiments.export` writes by default.
ENCODER = "encoder"


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
    arrays = {name: np.ascontiguousarray(array) for name, array in loading.flatten(params).items()}
    save_file(arrays, partial, dict(about))
    os.replace(partial, path)


def load(
    path: str | Path, *, part: str = "", shardings: Any = None, dtype: Any = None
) -> dict[str, Any]:
    """Reads the parameters of a network.

    Args:
      path: a file that `save` wrote, or a directory of `experiments.convert`.
      part: which branch of the parameters to read ("encoder"); all when empty.
      shardings: nested dict of shardings, one for each parameter read; NumPy arrays when absent.
      dtype: of the parameters; that of the file when absent.

    Raises:
      UserError: nothing usable is there, or it has no such branch.
    """
    path = Path(path)
    if converted.is_converted(path):
        return converted.load(path, part=part, shardings=shardings, dtype=dtype)
    if path.is_dir():
        raise UserError(
            f"{path} is no converted checkpoint; make one of a published directory with "
            "`python -m experiments.convert`"
        )
    tensors = open_tensors(path)
    prefix = f"{part}/" if part else ""
    leaves = {
        name.removeprefix(prefix): layout.leaf(name, tensors.shape(name))
        for name in tensors
        if name.startswith(prefix)
    }
    if not leaves:
        raise UserError(f"{path} has no parameters {part!r}")
    table = layout.Layout(leaves, ignored=(f"(?!{prefix}).*",) if part else ())
    return loading.load(tensors, table, shardings=shardings, dtype=dtype)


def about(path: str | Path) -> dict[str, str]:
    """Returns what the header of a file says of where it comes from.

    Of a converted directory that is what `save` would say of its encoder.

    Raises:
      UserError: nothing usable is there.
    """
    if converted.is_converted(path):
        said = converted.about(path)
        fields = said.get("fields", {}).get(ENCODER)
        found = {"model": str(said.get("model")), "source": str(said.get("source"))}
        return found | ({"fields": json.dumps(fields)} if fields else {})
    return dict(open_tensors(path).metadata)


def load_into(
    path: str | Path, wanted: Any, fields: Mapping[str, Any], key: str, *, part: str = ENCODER
) -> dict[str, Any]:
    """Reads the parameters of a network that must be the one a config describes.

    Args:
      path: as in `load`.
      wanted: nested dict of what has the shapes of the network's parameters.
      fields: those of the network that change what it computes and no shape; they are compared
        with what the file says, where it says it.
      key: of the config that names the file, for the errors.
      part: which branch of a converted directory.

    Returns:
      A nested dict of NumPy arrays.

    Raises:
      UserError: nothing usable is there, or it is another network.
    """
    said = json.loads(about(path).get("fields", "{}"))
    for name, value in fields.items():
        if name in said and said[name] != value:
            raise UserError(
                f"{key}={path} was made with {name}={said[name]!r} and the config says {value!r}; "
                "make them equal"
            )
    found = load(path, part=part if converted.is_converted(path) else "")
    ours, theirs = loading.flatten(wanted), loading.flatten(found)
    wrong = {
        "lacks": sorted(ours.keys() - theirs.keys()),
        "holds what the config's network lacks:": sorted(theirs.keys() - ours.keys()),
        "has of another shape:": [
            f"{name} {tuple(theirs[name].shape)}, needed {tuple(ours[name].shape)}"
            for name in sorted(ours.keys() & theirs.keys())
            if tuple(theirs[name].shape) != tuple(ours[name].shape)
        ],
    }
    told = [f"{what} {', '.join(names)}" for what, names in wrong.items() if names]
    if told:
        raise UserError(f"{key}={path} {'; '.join(told)}; give the sizes of the network in it")
    return found
