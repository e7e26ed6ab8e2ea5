"""What was trained here in its published form: its numbers, in the frame of the model it began as.

`experiments.export` writes one network of a run. A published directory wants more: a `config.json`,
a tokenizer, and tensors of parts that the run had no use for (V-JEPA 2's predictor, BERT's pooler).
Those come from a directory of the model that the network began as. All networks of a run that began
as nothing make a directory by themselves, where its method is that of a published model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.errors import UserError
from jepa.interop import converted, layout, loading
from jepa.interop.fields import tuples
from jepa.interop.layout import Layout
from jepa.interop.loading import Tree
from jepa.interop.registry import Model, Plan, Settings
from jepa.interop.tensors import Tensors


def frame(model: Model, like: Path) -> tuple[Plan, Tree]:
    """Returns the plan of a directory and its parameters, to be read one by one.

    Args:
      model: of which the directory is.
      like: a published directory, or one of `experiments.convert`.

    Raises:
      UserError: it is of another model, or damaged.
    """
    if not converted.is_converted(like):
        tensors = model.open(like)
        read = model.plan_of(tensors)
        # What is written has the published form, also where what is read is Meta's own.
        return model.plan(read.config), loading.pending(tensors, read.layout)
    said = converted.about(like)
    if said.get("model") != model.name:
        raise UserError(f"{like} holds {said.get('model')!r}; say --model={said.get('model')}")
    return model.plan(said["config"]), converted.pending(like)


def placed(network: Mapping[str, Any], base: Tree, source: Path) -> Tree:
    """Puts a network in the place of the part of a model that it is.

    Args:
      network: its parameters, a nested dict.
      base: those of the model, parts by their first name.
      source: where the network comes from, for the errors.

    Returns:
      The parameters of the model, those of one part from the network.

    Raises:
      UserError: it is none of the model's parts.
    """
    ours = {path: tuple(leaf.shape) for path, leaf in loading.flatten(network).items()}
    parts = {
        name: {path: tuple(leaf.shape) for path, leaf in loading.flatten(part).items()}
        for name, part in base.items()
        if isinstance(part, Mapping)
    }
    for name, part in parts.items():
        if part == ours:
            return {**base, name: dict(network)}
    # The part most like it tells what is amiss.
    name = max(parts, key=lambda name: len(parts[name].keys() & ours.keys()))
    differ = sorted(parts[name].items() ^ ours.items())
    raise UserError(
        f"{source} holds none of this model's {', '.join(parts)}: {differ[0][0]} is not in both or "
        "of another shape; give the network that began as it"
    )


def is_run(tensors: Tensors) -> bool:
    """Returns whether a file is one of `experiments.export`."""
    return "method" in tensors.metadata


def whole(model: Model, tensors: Tensors, settings: Settings) -> tuple[Plan, Tree]:
    """Returns the plan of a run's networks and their parameters, to be read one by one.

    Args:
      model: that they are of.
      tensors: the opened file.
      settings: what the file does not say.

    Raises:
      UserError: it holds one network alone, or networks that the published model cannot have; or
        there is something that the user has to say.
    """
    path, part = tensors.path, tensors.metadata.get("part")
    if model.describe is None:
        raise UserError(
            f"{path} is of a run, and none trains the whole of {model.name}; say what it began as "
            "with --like"
        )
    if part:
        raise UserError(
            f"{path} holds the {part} alone; say what it began as with --like, or write all "
            "networks with `python -m experiments.export --part=`"
        )
    config = settings.apply(model.describe(tuples(json.loads(tensors.metadata["fields"]))))
    for key, value in config.items():
        if value is None:
            raise UserError(f"{path} does not say {key}; say it with --set {key}=VALUE")
    ours = Layout({name: layout.leaf(name, tensors.shape(name)) for name in tensors})
    return model.plan(config), loading.pending(tensors, ours)
