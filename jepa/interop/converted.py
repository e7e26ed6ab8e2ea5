"""Converted checkpoints: a directory with the parameters as Orbax keeps them, and what they are.

    DIRECTORY/model.json    which model, the fields of our modules, its config.json, where from
    DIRECTORY/params/       the nested dict of parameters

Beside `training.checkpoints`, which keeps whole runs, this is the one module that knows Orbax.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jepa.errors import UserError
from jepa.interop.fields import tuples
from jepa.interop.loading import Pending, Tree, flatten, unflatten
from jepa.interop.saving import appearing, copy, write_json
from jepa.interop.tensors import read_json

ABOUT, PARAMS = "model.json", "params"
# What is stored together, and so read at least, where a process needs a part of a parameter. Also
# what is copied on its way to the disk, some at a time.
_CHUNK_BYTES = 16 * 2**20
# A restore without shardings is meant: arrays then come as NumPy's. And one process writes.
_NOISE = (
    "Sharding info not provided",
    "Skipping merge of OCDBT checkpoints",
    "No jax.Array in TypeHandlerRegistry",
)
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
logging.getLogger("absl").addFilter(
    lambda record: not any(words in record.getMessage() for words in _NOISE)
)


def is_converted(path: str | Path) -> bool:
    """Returns whether a directory is a converted checkpoint."""
    return (Path(path) / ABOUT).exists()


def save(
    to: str | Path,
    params: Mapping[str, Any],
    about: Mapping[str, Any],
    copies: Mapping[str, Path] | None = None,
) -> None:
    """Writes a converted checkpoint, whole or not at all.

    Args:
      to: the directory, which must not exist.
      params: nested dict of arrays that this process can read.
      about: what `model.json` says.
      copies: further files by the name they get, and where they lie.

    Raises:
      UserError: `to` exists, or the disk refuses.
    """
    with appearing(Path(to)) as directory:
        arrays = jax.tree.map(np.asarray, dict(params))
        args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), arrays)
        with _refusals(), ocp.Checkpointer(_writer()) as checkpointer:
            where = (directory / PARAMS).absolute()
            checkpointer.save(where, ocp.args.PyTreeSave(arrays, save_args=args))
        write_json(directory / ABOUT, about)
        copy(copies or {}, directory)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raises what the operating system refused as an OSError, however Orbax words it."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            # The layer beneath Orbax raises a ValueError with the number in its text.
            found = _OS_ERROR.search(str(cause))
            code = cause.errno if isinstance(cause, OSError) else found and int(found[1])
            if code:
                raise OSError(code, os.strerror(code)) from error
            cause = cause.__cause__ or cause.__context__
        raise


def about(path: str | Path) -> dict[str, Any]:
    """Returns what `model.json` says.

    Raises:
      UserError: the directory is no converted checkpoint.
    """
    if not is_converted(path):
        raise UserError(f"{path} is no converted checkpoint: it has no {ABOUT}")
    found = read_json(Path(path) / ABOUT)
    return {**found, "fields": tuples(found.get("fields", {}))}


def load(path: str | Path, *, part: str = "", shardings: Any = None, dtype: Any = None) -> Tree:
    """Reads the parameters of a converted checkpoint.

    Args:
      path: the directory.
      part: path of the branch to read ("encoder"); all when empty.
      shardings: nested dict of shardings for that branch; NumPy arrays when absent.
      dtype: of the parameters; that of the checkpoint when absent.

    Raises:
      UserError: it is no converted checkpoint, is damaged, or has no such branch.
    """
    about(path)
    where = (Path(path) / PARAMS).absolute()
    try:
        with ocp.Checkpointer(_handler()) as checkpointer:
            found = _known(checkpointer.metadata(where))
            names = [n for n in found if not part or n == part or n.startswith(f"{part}/")]
            if not names:
                branches = sorted({name.split("/")[0] for name in found})
                raise UserError(f"{path} has no parameters {part!r}; it has {', '.join(branches)}")
            wanted = {} if shardings is None else flatten(shardings, f"{part}/" if part else "")
            restore = {name: _how(found[name], wanted.get(name), dtype) for name in names}
            tree: Any = _restore(checkpointer, where, found, restore)
    except UserError:
        raise
    except Exception as error:  # Orbax raises whatever the layer beneath it raised.
        raise _damaged(path, error) from error
    for name in part.split("/") if part else ():
        tree = tree[name]
    return dict(tree)


def pending(path: str | Path, part: str = "") -> Tree:
    """Returns the parameters of a branch, or all of them, to be read one by one.

    Raises:
      UserError: as `load`.
    """
    about(path)
    where = (Path(path) / PARAMS).absolute()
    try:
        with ocp.Checkpointer(_handler()) as checkpointer:
            found = _known(checkpointer.metadata(where))
    except Exception as error:  # Orbax raises whatever the layer beneath it raised.
        raise _damaged(path, error) from error

    def one(name: str) -> Pending:
        def get(sharding: Any, dtype: Any) -> Any:
            how = {name: _how(found[name], sharding, dtype)}
            try:
                with ocp.Checkpointer(_handler()) as checkpointer:
                    return flatten(_restore(checkpointer, where, found, how))[name]
            except Exception as error:
                raise _damaged(path, error) from error

        return Pending(found[name].shape, np.dtype(found[name].dtype), get)

    prefix = f"{part}/" if part else ""
    names = [name for name in found if name.startswith(prefix)]
    if not names:
        raise UserError(f"{path} has no parameters {part!r}")
    return unflatten({name.removeprefix(prefix): one(name) for name in names})


def _restore(checkpointer: Any, where: Path, found: Tree, how: Mapping[str, Any]) -> Any:
    item = unflatten({name: found[name] for name in how})
    args = ocp.args.PyTreeRestore(item, restore_args=unflatten(how), partial_restore=True)
    return checkpointer.restore(where, args)


def _damaged(path: str | Path, error: Exception) -> UserError:
    line = (str(error).strip().splitlines() or ["no message"])[0][:200]
    return UserError(f"{path} is damaged ({line}); convert it again")


def _how(found: Any, sharding: Any, dtype: Any) -> Any:
    dtype = found.dtype if dtype is None else np.dtype(dtype)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    return ocp.ArrayRestoreArgs(sharding=sharding, dtype=dtype)


def _known(metadata: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and type of every parameter on the disk, by path."""
    tree = metadata.item_metadata.tree
    return {
        name: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
        for name, leaf in flatten(tree).items()
    }


def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler()


def _writer() -> ocp.PyTreeCheckpointHandler:
    """Writes NumPy arrays as they lie, chunk by chunk.

    By default Orbax copies all arrays first, since a run goes on while they are written, and
    gathers what it writes in memory (OCDBT); together that took 2.6 times a checkpoint's size.
    """
    arrays = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((np.ndarray, arrays)),
    )
