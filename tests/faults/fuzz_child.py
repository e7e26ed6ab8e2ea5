"""Reads some damaged clips; see `tests.faults.fuzz`, which starts this.

python -m tests.faults.fuzz_child DIRECTORY BEGIN END SEED
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import os
import pickle
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import av
import jax
import numpy as np
from absl import logging

from jepa.data import clips, decode, folder, images, transcode, transforms, verify
from jepa.data.config import DataConfig
from jepa.data.loader import make_train_loader
from jepa.data.order import Order
from jepa.data.writer import DatasetWriter, write_shard
from tests.faults.fuzz import damaged

_MEMORY = 4 * 2**30
_BATCH = 10


def main() -> None:
    """Reads them and writes what was found."""
    directory, begin, end, seed = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.set_verbosity(logging.ERROR)
    originals = pickle.loads((directory / "originals.pickle").read_bytes())
    records, kinds = [], []
    for number in range(begin, end):
        name, kind, data = damaged(originals, number, seed)
        source = next(record for of, record in originals if of == name)
        kinds.append((name, kind))
        records.append(dataclasses.replace(source, key=f"{number}: {name}, {kind}", video=data))
    sound = (end - begin) // 3 + 1
    sound += -(len(records) + sound) % _BATCH
    for number in range(sound):
        record = originals[number % len(originals)][1]
        records.append(dataclasses.replace(record, key=f"sound {number}"))
    found = check(records, kinds, seed=begin, workers=int(begin // 500 % 5 == 0))
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (directory / f"{begin}-{end}.json").write_text(json.dumps(found))


def check(records: list[Any], kinds: list[tuple[str, str]], *, seed: int, workers: int) -> dict:
    """Reads the records each alone and all through the loader; the first ones are damaged."""
    config = DataConfig.parse(
        {"path": ".", "frames": 8, "size": 32, "sampling": "uniform", "streams": ("video",)}
        | {"max_bad_fraction": 0.99, "pixels": ("rgb", "yuv420")[seed // 500 % 2]}
    )
    problems: list[str] = []
    refused = {}
    for number, record in enumerate(records):
        refused[number] = alone(record, config, problems)
        if number < len(kinds):
            prepared(record, problems, transcoded=number % 10 == 0)
    bad = {number for number, reason in refused.items() if reason}
    problems += [f"{records[n].key}: {refused[n]}" for n in bad if n >= len(kinds)]
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), records)
        try:
            first = epoch(config, place, records, seed, threads=1)
            again = epoch(config, place, records, seed, threads=2, workers=workers)
        except Exception as error:
            said = f"{type(error).__name__}: {error}, from the loader"
            return {"totals": {}, "by": {}, "problems": [*problems, said]}
    if first != again:
        problems.append("another number of threads or workers gives other batches")
    problems += replaced(records, first, bad, seed)
    by: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for number, names in enumerate(kinds):
        for name in names:
            by[name]["unreadable" if number in bad else "readable"] += 1
    totals = {
        "unreadable": len(bad),
        "counted_by_the_loader": len(first["unreadable"]),
        "rows_replaced": sum(a != b for a, b in zip(first["keys"], first["asked"], strict=True)),
        "readable": len(kinds) - len(bad),
    }
    return {"totals": totals, "by": by, "problems": problems}


def alone(record: Any, config: DataConfig, problems: list[str]) -> str:
    """Why the decoder refuses a record, or nothing."""
    view = clips.View(config, 0)
    count, rate, _ = decode.grid(record)
    times = decode.frame_times(record, view.indices([count], [rate], np.zeros(1, int))[0])
    converter = transforms.Converter(config.size, config.pixels)
    try:
        decode.decode_clip(record.video, times, converter)
    except decode.DecodeError as error:
        return str(error) or "no reason"
    except Exception as error:
        problems.append(f"{record.key}: {type(error).__name__}: {error}, from the decoder")
    return ""


def prepared(record: Any, problems: list[str], *, transcoded: bool) -> None:
    """Looks at a record as the preparation of data and the reading of folders do."""
    data, refusals = record.video, (verify.BadVideo, av.error.FFmpegError, ValueError)
    looks: list[tuple[str, Callable[[], Any], Any]] = [
        ("verify", lambda: verify.verify(data), verify.BadVideo),
        ("folder", lambda: folder._header(io.BytesIO(data), ".mp4"), refusals),
        ("images", lambda: images.picture_size(data), ()),
    ]
    if transcoded:
        looks.append(("transcode", lambda: transcode.transcode(data, 32), verify.BadVideo))
    for name, look, refused in looks:
        try:
            look()
        except Exception as error:
            if not isinstance(error, refused):
                said = f"{type(error).__name__}: {error}"
                problems.append(f"{record.key}: {said}, from {name}")


def write(directory: Path, records: list[Any]) -> None:
    """Writes them as a dataset."""
    writer = DatasetWriter(directory, name="fuzz", settings={})
    for index in writer.missing("train", 1):
        write_shard(directory, "train", index, 1, iter(records))
    writer.finish({"train": 1}, attributes={}, caption_queries=["what happens?"])


def epoch(
    config: DataConfig, path: str, records: list[Any], seed: int, *, threads: int, workers: int = 0
) -> dict[str, Any]:
    """What the loader makes of all records, once."""
    config = dataclasses.replace(config, path=path, threads=threads, workers=workers)
    hashes, keys = [], []
    with make_train_loader(config, global_batch=_BATCH, seed=seed) as loader:
        for _ in range(len(records) // _BATCH):
            batch = next(loader)
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
            assert shapes == loader.element_spec, (shapes, loader.element_spec)
            leaves = b"".join(np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(batch))
            hashes.append(hashlib.sha256(leaves).hexdigest())
            keys += loader.record_keys()
        unreadable = dict(loader.unreadable)
    order = Order([len(records)], [1.0], seed)
    _, numbers = order(np.arange(len(records)))
    asked = [records[number].key for number in numbers]
    return {"hashes": hashes, "keys": keys, "unreadable": unreadable, "asked": asked}


def replaced(records: list[Any], found: dict[str, Any], bad: set[int], seed: int) -> list[str]:
    """What is wrong with the stand-ins, and with the counting."""
    said = []
    if sorted(found["unreadable"]) != sorted(f"0:{number}" for number in bad):
        said.append(f"the loader counts {len(found['unreadable'])} unreadable of {len(bad)}")
    names = {records[number].key for number in bad}
    for key, asked in zip(found["keys"], found["asked"], strict=True):
        if (asked in names) != (key != asked) or key in names:
            said.append(f"{asked} was asked for, and {key} came")
    return said


if __name__ == "__main__":
    main()
