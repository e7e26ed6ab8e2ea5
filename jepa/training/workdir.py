"""The working directory of a run: whose it is, and its log of numbers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jepa.data.config import default_data_config
from jepa.data.storage import storing, write_atomically
from jepa.errors import UserError
from jepa.parallel import hosts
from jepa.training import config as configs
from jepa.training import phases

log = logging.getLogger("jepa")

# What may change between the start of a run and its resumption: how it is watched and kept, where
# it runs and how long. Everything else decides the numbers.
HARMLESS = (
    "evaluation",
    "probe",
    "mesh",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.health_every",
    "train.keep_last",
    "train.keep_best_metric",
    "train.keep_best_mode",
    "train.profile_steps",
    "train.log_records",
    "train.max_consecutive_skipped",
    "data.workers",
    "data.threads",
    "data.timeout",
    "data.cache",
)


def plain(value: Any) -> Any:
    """Returns a config as what JSON can hold: mappings as dicts, tuples as lists."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = {}
        for key, item in value.items():
            parts.update(_flat(item, f"{path}.{key}" if path else key))
        return parts
    return {path: value}


def _harmless(path: str) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in HARMLESS)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns `key (old -> new)` for what may not differ between a run and its resumption.

    A key that one of the configs lacks has its default, so that a new key of the library makes no
    run another one. Phase is compared with phase; the last may grow, and others may follow.

    Raises:
      UserError: a phase that is not well formed.
    """
    before, after = (phases.expand(_complete(plain(config))) for config in (old, new))
    if len(after) < len(before):
        return [f"phases ({len(before)} -> {len(after)})"]
    where: dict[str, list[str]] = {}
    for index, ((_, had), (name, has)) in enumerate(zip(before, after, strict=False)):
        last = index + 1 == len(before)
        for text in _of_a_phase(_flat(had), _flat(has), may_grow=last):
            where.setdefault(text, []).append(name)
    return [
        text if len(names) == len(before) else f"{text} in phase {', '.join(map(repr, names))}"
        for text, names in sorted(where.items())
    ]


def _of_a_phase(old: Mapping[str, Any], new: Mapping[str, Any], *, may_grow: bool) -> list[str]:
    found = []
    for path in sorted({*old, *new}):
        before, after = old.get(path, "absent"), new.get(path, "absent")
        if before == after or _harmless(path):
            continue
        if may_grow and path == "train.steps" and isinstance(after, int) and after > before:
            continue
        found.append(f"{path} ({before!r} -> {after!r})")
    return found


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a plain config with today's defaults for the keys that it lacks."""
    defaults: dict[str, Any] = {
        "mesh": configs.default_mesh_config(),
        "optimizer": configs.default_optimizer_config(),
        "train": configs.default_train_config(),
        **{section: default() for section, default in _of_method(config.get("method")).items()},
    }
    if config.get("ema") is not None:
        defaults["ema"] = configs.default_ema_config()
    complete = dict(config)
    for section, default in defaults.items():
        complete[section] = _filled(config.get(section) or {}, plain(default))
    # What is in a key of `data` is a value, not a section with defaults of its own.
    complete["data"] = {**plain(default_data_config()), **(config.get("data") or {})}
    return complete


def _filled(given: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    filled = {**default, **given}
    for key, inner in default.items():
        if isinstance(inner, dict) and isinstance(filled[key], dict):
            filled[key] = _filled(filled[key], inner)
    return filled


def _of_method(path: Any) -> dict[str, Callable[[], Any]]:
    """Returns what gives the defaults of the sections `model` and `loss`, where a method says it.

    A method has `default_model` and `default_loss`, or the module that it is in has them.
    """
    module_name, _, name = str(path).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError):
        return {}  # Making the method is where that becomes an error.
    places = (getattr(module, name, None), module)
    found = {}
    for section in ("model", "loss"):
        of_section = (getattr(place, f"default_{section}", None) for place in places)
        default = next((made for made in of_section if made is not None), None)
        if default is not None:
            found[section] = default
    return found


def read_config(workdir: str | Path) -> dict[str, Any] | None:
    """Returns the config that made the directory, or None if no run began there."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); use another --workdir.") from error


def check(workdir: str | Path, config: Any) -> None:
    """Checks a directory before work that ends there. Writes nothing.

    Raises:
      UserError: it lies in a file, or belongs to a run with another config.
    """
    path = Path(workdir).absolute()
    there = next(above for above in (path, *path.parents) if os.path.exists(above))
    if not there.is_dir():
        raise UserError(f"--workdir: {there} is a file; name a directory")
    old = read_config(workdir)
    found = differences(old, plain(config)) if old is not None else []
    if found:
        raise UserError(
            f"{workdir} belongs to a run with another config: {'; '.join(found)}; use another "
            "--workdir, or the old values."
        )


def claim(workdir: str | Path, config: Any) -> None:
    """Makes the directory and writes its config.json."""
    write_atomically(Path(workdir) / "config.json", json.dumps(plain(config), indent=2) + "\n")


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[None]:
    """Holds the directory against a second run; the system lets go of it however the run ends.

    Of several processes the first one holds it, for all of them, before any goes on.

    Raises:
      UserError: another run trains there, or the directory cannot be made.
    """
    if hosts.index():
        hosts.barrier("start")
        yield
        return
    path = Path(workdir) / ".lock"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 - closing it would give the lock back.
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"Another run is training in {workdir}; wait for it or choose another "
                    "--workdir."
                ) from error
            # Some network and bucket file systems know no locks.
            log.warning("%s cannot be locked (%s); start no second run there", path, error)
        hosts.barrier("start")
        yield


def forget_after(workdir: str | Path, step: int) -> None:
    """Drops lines of metrics.jsonl beyond `step`, which the resumed run will write again.

    A last line that a killed run left half written is dropped too.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(line)
    write_atomically(path, "".join(f"{line}\n" for line in kept))


_FINISHED = "finished.json"
_HASHED = 16 * 2**20  # bytes at the beginning of each file; large ones are not read whole


def finish(workdir: str | Path, step: int) -> None:
    """Notes that the run has ended at `step`, and what the files of that checkpoint are."""
    record = {"step": step, "files": _files(Path(workdir) / "checkpoints" / str(step))}
    write_atomically(Path(workdir) / _FINISHED, json.dumps(record) + "\n")


def finished_step(workdir: str | Path) -> int | None:
    """Returns the step at which the run has ended, read without JAX or Orbax.

    None if it has not, or if its last checkpoint is not whole any more; to train again then goes
    on from an earlier one, or finds that all is well.
    """
    try:
        record = json.loads((Path(workdir) / _FINISHED).read_text())
        step, files = int(record["step"]), record["files"]
        found = _files(Path(workdir) / "checkpoints" / str(step))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if files and found == files else None


def _files(directory: Path) -> dict[str, list[int]]:
    """Returns size and CRC of the first part of each file below a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                crc = zlib.crc32(file.read(_HASHED))
            found[path.relative_to(directory).as_posix()] = [path.stat().st_size, crc]
    return found
