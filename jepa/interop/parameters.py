"""Parameters as one safetensors file, an array a path: how encoders go from one run into another.

Source of the format: https://github.com/huggingface/safetensors. Names are the `/`-joined paths of
the parameter tree, so a file is read without knowing who wrote it. Wherever such a file is read, a
directory of `experiments.convert` will do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jepa.errors import UserError
from jepa.interop import converted, layout, loading, registry
from jepa.interop.fields import of_module, tuples
from jepa.interop.paths import locate
from jepa.interop.tensors import open_tensors

# Names of models with an encoder, by the model_type of their config.json.
_PUBLISHED = {
    "vjepa2": "v_jepa_2",
    "v_jepa_2_1": "v_jepa_2_1",
    "v_jepa": "v_jepa",
    "i_jepa": "i_jepa",
    "ijepa": "i_jepa",
    "vit": "vit",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "siglip": "siglip",
    "siglip2": "siglip",
    "siglip_vision_model": "siglip",
    "siglip2_vision_model": "siglip",
}
_CLASSIFIER = "VJEPA2ForVideoClassification"
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
    path = locate(path)
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

    Raises:
      UserError: nothing usable is there.
    """
    return dict(open_tensors(locate(path)).metadata)


def parts(path: str | Path) -> tuple[str, ...]:
    """Returns which networks a path of weights holds ("encoder", "predictor", ...).

    Raises:
      UserError: nothing usable is there.
    """
    return tuple(_networks(locate(path)))


def load_into(
    path: str | Path, wanted: Any, fields: Mapping[str, Any], key: str, *, part: str = ENCODER
) -> dict[str, Any]:
    """Finds the parameters of a network, which must be the one that a config describes.

    Args:
      path: as in `load`; or a directory as Hugging Face publishes it, or one that
        `experiments.convert` wrote in Meta's layout.
      wanted: nested dict of what has the shapes of the network's parameters.
      fields: those of the network that change what it computes and no shape; they are compared
        with what is said beside the parameters.
      key: of the config that names the path, for the errors.
      part: which network of several.

    Returns:
      A nested dict of `loading.Pending`, which are read when their place is known.

    Raises:
      UserError: nothing usable is there, or it is another network.
    """
    networks = _networks(locate(path))
    if part not in networks:
        raise UserError(f"{key}={path} holds {', '.join(networks)} and no {part}")
    said, find = networks[part]
    found, said = find(), of_module(said)
    for name, value in of_module(fields).items():
        if name in said and said[name] != value:
            raise UserError(
                f"{key}={path} was made with {name}={said[name]!r} and the config says {value!r}; "
                "make them equal"
            )
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


def _networks(path: Path) -> dict[str, tuple[Mapping[str, Any], Callable[[], loading.Tree]]]:
    """Returns the networks in a path by name: what is said of each, and what finds its tensors."""
    if converted.is_converted(path):
        return {
            name: (said, partial(converted.pending, path, name))
            for name, said in converted.about(path)["fields"].items()
        }
    tensors = open_tensors(path)
    if tensors.config is not None:
        model = _published(path, tensors.config)
        tensors = model.open(path)
        plan = model.plan_of(tensors)
        found = loading.pending(tensors, plan.layout)
        return {
            name: (said, partial(found.__getitem__, name)) for name, said in plan.fields.items()
        }
    leaves = {name: layout.leaf(name, tensors.shape(name)) for name in tensors}
    found = loading.pending(tensors, layout.Layout(leaves))
    said = tuples(json.loads(tensors.metadata.get("fields", "{}")))
    if tensors.metadata.get("part") == "":
        return {name: (said.get(name, {}), partial(found.__getitem__, name)) for name in found}
    return {ENCODER: (said, lambda: found)}


def _published(path: Path, config: Mapping[str, Any]) -> registry.Model:
    kind = config.get("model_type")
    if kind not in _PUBLISHED:
        raise UserError(
            f"{path} is of model_type {kind!r}, and encoders are of {', '.join(_PUBLISHED)}"
        )
    classifies = _CLASSIFIER in (config.get("architectures") or ())
    return registry.model("v_jepa_2_classifier" if classifies else _PUBLISHED[kind])
