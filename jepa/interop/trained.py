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
from jepa.interop import converted, layout, loading, parameters
from jepa.interop.fields import difference, tuples
from jepa.interop.layout import Layout
from jepa.interop.loading import Tree
from jepa.interop.registry import Model, Plan, Settings
from jepa.interop.saving import OURS
from jepa.interop.tensors import Tensors


def leaving(
    model: Model,
    config: Mapping[str, Any],
    fields: Mapping[str, Mapping[str, Any]],
    settings: Settings,
    where: Path,
) -> Plan:
    """Returns the plan by which weights leave, with what the user says of them.

    Args:
      model: that they are of.
      config: its `config.json`.
      fields: of the networks, by name.
      settings: keys of `config.json` that do not change the networks (V-JEPA 2's `crop_size`).
      where: they lie, for the errors.

    Raises:
      UserError: a setting has no use, or would say of the weights what they are not.
    """
    if settings.branch:
        raise UserError(
            f"--branch={settings.branch} chooses among the encoders of a .pt file, and {where} is "
            "none; leave it out"
        )
    for key in settings.values:
        if key.startswith(OURS):
            raise UserError(f"--set {key}: there is no such key in config.json; leave it out")
    plan = model.plan(settings.apply(config))
    for part in plan.fields if settings.values else ():
        found = difference(fields.get(part, {}), tuples(plan.fields[part]))
        if found:
            name, ours, theirs = found
            raise UserError(
                f"--set {', '.join(settings.values)} would make {name} of the {part} {theirs!r}, "
                f"and {where} holds weights made with {ours!r}; leave it out"
            )
    return plan


def frame(model: Model, like: Path, settings: Settings | None = None) -> tuple[Plan, Tree]:
    """Returns the plan of a directory and its parameters, to be read one by one.

    Args:
      model: of which the directory is.
      like: a published directory or file, or a directory of `experiments.convert`.
      settings: what its files do not say, and what the `config.json` that leaves is to say.

    Raises:
      UserError: it is of another model, or damaged; or settings have no use.
    """
    settings = settings or Settings()
    if not converted.is_converted(like):
        tensors = model.open(like)
        plan = model.plan_of(tensors, settings if tensors.config is None else None)
        found = loading.pending(tensors, plan.layout)
        # What is written has the published form, also where what is read is Meta's own.
        if tensors.config is None:
            return model.plan(plan.config), found
        return leaving(model, plan.config, plan.fields, settings, like), found
    said = about(model, like)
    return leaving(model, said["config"], said["fields"], settings, like), converted.pending(like)


def about(model: Model, path: Path) -> dict[str, Any]:
    """Returns what a converted directory says of itself.

    Raises:
      UserError: it is of another model.
    """
    said = converted.about(path)
    if said.get("model") != model.name:
        raise UserError(f"{path} holds {said.get('model')!r}; say --model={said.get('model')}")
    return said


def read(path: Path) -> tuple[Tree, dict[str, Any]]:
    """Reads a network that `experiments.export` wrote.

    Args:
      path: of the file, as a command line gives it: not below `JEPA_WEIGHTS`.

    Returns:
      Its parameters and what the file says of its fields, nothing where it does not.

    Raises:
      UserError: it is no such file.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a directory, and --like takes a file of experiments.export; leave --like "
            "out, or name a file"
        )
    path = path.absolute()
    said = tuples(json.loads(parameters.about(path).get("fields", "{}")))
    return parameters.load(path), said


def placed(
    network: Mapping[str, Any],
    said: Mapping[str, Any],
    frame: tuple[Plan, Tree],
    source: Path,
    like: Path,
) -> Tree:
    """Puts a network in the place of the part of a model that it is.

    Args:
      network: its parameters, a nested dict.
      said: its fields.
      frame: plan of the model and its parameters, parts by their first name.
      source: where the network comes from, for the errors.
      like: where the model comes from.

    Returns:
      The parameters of the model, those of one part from the network.

    Raises:
      UserError: it is none of the model's parts, or computes something else than that part.
    """
    plan, base = frame
    ours = {path: tuple(leaf.shape) for path, leaf in loading.flatten(network).items()}
    parts = {
        name: {path: tuple(leaf.shape) for path, leaf in loading.flatten(part).items()}
        for name, part in base.items()
        if isinstance(part, Mapping)
    }
    # The part most like it is the one that is meant.
    name = max(parts, key=lambda name: (parts[name] == ours, len(parts[name].keys() & ours.keys())))
    found = difference(said, tuples(plan.fields.get(name, {})))
    if found:
        field, trained, published = found
        raise UserError(
            f"{source} was trained with {field}={trained!r}, and the {name} of {like} is made with "
            f"{published!r}, so it is another network; give --like what it began as, or train with "
            f"{field}={published!r}"
        )
    if parts[name] != ours:
        differ = sorted(parts[name].items() ^ ours.items())
        raise UserError(
            f"{source} holds none of this model's {', '.join(parts)}: {differ[0][0]} is not in "
            "both or of another shape; give the network that began as it"
        )
    return {**base, name: dict(network)}


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
    said = tuples(json.loads(tensors.metadata["fields"]))
    described = model.describe(said)
    config = settings.apply(described)
    for key, value in config.items():
        if value is None:
            raise UserError(f"{path} does not say {key}; say it with --set {key}=VALUE")
    ours = Layout({name: layout.leaf(name, tensors.shape(name)) for name in tensors})
    fields = {name: said.get(name, {}) for name in loading.unflatten(ours.leaves)}
    plan = leaving(model, described, fields, settings, path)
    return plan, loading.pending(tensors, ours)
