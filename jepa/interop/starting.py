"""Weights that a config names: checked at once, read when it is known where they go.

A name is the path of a published directory or of one that `experiments.convert` wrote.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jepa.errors import UserError
from jepa.interop import converted, llama, loading, registry
from jepa.interop.loading import Pending, Tree
from jepa.interop.paths import locate


@dataclasses.dataclass(frozen=True)
class Start:
    """What a checkpoint holds for one of our modules.

    Attributes:
      path: of the checkpoint.
      fields: of the module.
      params: nested dict of `loading.Pending`.
    """

    path: Path
    fields: Mapping[str, Any]
    params: Tree


def find(path: str | Path, name: str, part: str, key: str) -> Start:
    """Finds the weights of a model.

    Args:
      path: of a directory.
      name: of the model (`registry.names`).
      part: first name of the parameters meant ("tower").
      key: of the config that says so, for the errors.

    Raises:
      UserError: nothing is there, it is of another model, or damaged.
    """
    path, model = locate(path), registry.model(name)
    if not path.exists():
        raise UserError(f"{key} is {str(path)!r}, which does not exist; name a directory of {name}")
    if converted.is_converted(path):
        said = converted.about(path)
        if said.get("model") != name:
            raise UserError(f"{key} is {str(path)!r}, which holds {said.get('model')}, not {name}")
        return Start(path, said["fields"][part], converted.pending(path, part))
    with _naming(key, path):
        tensors = model.open(path)
        plan = model.plan_of(tensors)
        return Start(path, plan.fields[part], loading.pending(tensors, plan.layout)[part])


def find_llama(path: str | Path, layers: tuple[int, ...], key: str) -> Start:
    """Finds the weights of a span of Llama's layers, with token table and last norm.

    Args:
      path: of a directory.
      layers: first layer and the one behind the last; all when empty.
      key: of the config that names the path, for the errors.

    Raises:
      UserError: as `find`; or there are no such layers.
    """
    path = locate(path)
    if path.exists() and not converted.is_converted(path):
        with _naming(key, path):
            tensors = registry.model("llama").open(path)
            if tensors.config is None:
                raise UserError("there is no config.json beside the tensors")
            plan = llama.span(tensors.config, layers)
            params = loading.pending(tensors, plan.layout)[llama.PART]
            return Start(path, plan.fields[llama.PART], params)
    start = find(path, "llama", llama.PART, key)
    stack, branch = start.fields["stack"], start.params["llama"]
    with _naming(key, path):
        first, last = llama.check_span(layers, stack["depth"])
    blocks = jax.tree.map(lambda leaf: leaf.rows(first, last), branch["blocks"])
    fields = {**start.fields, "stack": {**stack, "depth": last - first}}
    return Start(path, fields, {**start.params, "llama": {**branch, "blocks": blocks}})


@contextlib.contextmanager
def _naming(key: str, path: Path) -> Iterator[None]:
    """Says in an error which key of the config led there."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key} is {str(path)!r}: {error}") from error


def agree(start: Start, key: str, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Checks that a config describes the module that some weights are of.

    Args:
      start: the weights.
      key: of the config that names them.
      pairs: by the key of the config or the field: what the config says, what the weights are of.

    Raises:
      UserError: they differ.
    """
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(
                f"{key} is {str(start.path)!r}, whose weights are of {name}={theirs!r}, and the "
                f"config says {ours!r}; make them equal"
            )


def read(params: Any) -> Any:
    """Returns a nested dict with NumPy arrays in the place of what is still to be read."""
    return jax.tree.map(
        lambda leaf: leaf.read() if isinstance(leaf, Pending) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, Pending),
    )
