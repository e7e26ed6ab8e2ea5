"""Reads WebDataset tar shards: `clip.mp4`, `clip.txt` and `clip.json` side by side."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa.data import schema
from jepa.data.entries import IMAGE_SUFFIXES, VIDEO_SUFFIXES, BadRow, make_record, parse
from jepa.data.writer import Reject
from jepa.errors import UserError

_BLOCK = 512
_PICTURES = VIDEO_SUFFIXES | IMAGE_SUFFIXES


def find_tars(pattern: str) -> list[Path]:
    """The tar files that a glob names, in order; UserError when there is none."""
    paths = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
    tars = [path for path in paths if path.suffix == ".tar" and path.is_file()]
    if not tars:
        raise UserError(f"--webdataset {pattern} names no .tar file; quote the pattern")
    return tars


def read_tar(
    path: Path, prefix: str, transcode_size: int | None = None
) -> Iterator[schema.Record | Reject]:
    """Verified records of one tar in its order, read as a stream.

    Members of one sample share the name up to the first dot and follow each other. A sample needs
    one video or picture; `.txt` is a caption, `.json` an object with the columns of a manifest.
    Other members are ignored, as WebDataset itself does.

    Args:
        path: The tar file, not compressed or compressed by gzip, bzip2 or xz.
        prefix: Put before each sample's name to make its key unique among all tars.
        transcode_size: As in `entries.make_record`.
    """
    seen: set[str] = set()
    for name, members in _samples(path):
        where = f"{path.name}/{name}"
        if isinstance(members, str):
            yield Reject(where, members)
        elif name in seen:
            yield Reject(where, "its name occurs twice; members of a sample must follow each other")
        else:
            seen.add(name)
            yield _record(members, where, f"{prefix}/{name}", transcode_size)


def _record(
    members: dict[str, bytes], where: str, key: str, transcode_size: int | None
) -> schema.Record | Reject:
    pictures = [suffix for suffix in members if suffix in _PICTURES]
    if len(pictures) != 1:
        found = ", ".join(sorted(members)) or "nothing"
        return Reject(where, f"holds {len(pictures)} videos instead of one (members: {found})")
    try:
        row: dict[str, Any] = {}
        if ".json" in members:
            row = json.loads(members[".json"])
            if not isinstance(row, dict):
                raise BadRow(".json is not an object")
        if ".txt" in members:
            text = members[".txt"].decode("utf-8-sig")
            row = {**row, "caption": text}
    except (BadRow, ValueError) as error:
        return Reject(where, f"its texts cannot be read: {error}")
    try:
        entry = parse({**row, "key": key}, name=where, source=where, path=Path(where))
    except BadRow as error:
        return Reject(where, str(error))
    return make_record(entry, transcode_size, data=members[pictures[0]])


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(name, {suffix: bytes}) of each sample, or (name, what is wrong)."""
    name, count = "", 0
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, base = os.path.split(member.name)
                stem, dot, suffix = base.partition(".")
                if not stem:
                    continue  # hidden files, which macOS puts beside every member
                this = os.path.join(folder, stem)
                if this != name and members:
                    yield name, members
                    count += 1
                if this != name:
                    name, members = this, {}
                suffix = (dot + suffix).lower()
                if suffix in _PICTURES or suffix in (".txt", ".json"):
                    handle = tar.extractfile(member)
                    members[suffix] = handle.read() if handle else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        # The sample that was being read is not whole.
        yield name or "(first member)", f"the tar is damaged from here on: {error}"
        return
    if members:
        yield name, members
    elif not count:
        yield "(empty)", "the tar holds no sample"
    if not _is_ended(path):
        yield "(end)", "the tar has no end mark, so it was cut off; samples may be missing"


def _is_ended(path: Path) -> bool:
    """Whether a tar ends with a block of zeros; `tarfile` takes a cut between members for an end.

    Always true of a compressed one, whose own format tells when it is cut off.
    """
    with path.open("rb") as file:
        if file.read(_BLOCK)[257:262] != b"ustar":
            return True
        file.seek(-_BLOCK, os.SEEK_END)
        return not any(file.read())
