"""Finds a user's videos: in a folder, or in a JSONL or CSV manifest."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa.data import schema
from jepa.data.entries import IMAGE_SUFFIXES, VIDEO_SUFFIXES, BadRow, Entry, is_known, merge, parse
from jepa.data.writer import Reject
from jepa.errors import UserError

csv.field_size_limit(1 << 24)  # a cell of questions may be long


def read_folder(folder: str | Path, label: str | None = None) -> list[Entry | Reject]:
    """Every video and picture below a folder, in order of name.

    A text file of the same stem beside a video holds its captions, one a line.

    Args:
        folder: Searched with all its sub-folders; names that begin with a dot are left out.
        label: Name of a label whose value is the first sub-folder of each file; None for none.

    Raises:
        UserError: it is no folder, or holds no video.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--folder {folder} is not a folder; name one that holds videos")
    entries: list[Entry | Reject] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
            continue
        labels = {label: inside.parts[0]} if label and len(inside.parts) > 1 else {}
        entries.append(_folder_entry(path, inside.as_posix(), labels))
    if not entries:
        known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise UserError(f"--folder {folder} holds no video; looked for {known}")
    return merge(entries)


def _folder_entry(path: Path, name: str, labels: dict[str, str]) -> Entry | Reject:
    sidecar = path.with_suffix(".txt")
    captions: tuple[schema.Caption, ...] = ()
    if sidecar.is_file():
        try:
            lines = sidecar.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            return Reject(name, f"{sidecar.name} cannot be read: {error}")
        texts = dict.fromkeys(line.strip() for line in lines if line.strip())
        if not texts:
            return Reject(name, f"{sidecar.name} is empty; write a caption or delete it")
        captions = tuple(schema.Caption(f"c{i}", text) for i, text in enumerate(texts))
    return Entry(name=name, key=name, source=name, path=path, captions=captions, labels=labels)


def read_manifest(path: str | Path) -> tuple[list[Entry | Reject], list[str]]:
    """Entries of a JSONL or CSV manifest, and the names of columns that mean nothing.

    Each line is a clip: `video` (relative to the manifest) and whatever of the columns in
    docs/data.md it has. Lines about the same clip are joined. A bad line becomes a Reject that
    names it.

    Raises:
        UserError: the manifest cannot be read, has no line, or has no `video` column.
    """
    path = Path(path)
    readers = {".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".csv": _csv_rows, ".tsv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"--manifest {path}: its name must end in .jsonl or .csv (or .tsv)")
    # One row at a time: a manifest may have millions of lines.
    columns: dict[str, None] = {}
    entries: list[Entry | Reject] = []
    try:
        for line, row in readers[path.suffix.lower()](path):
            if isinstance(row, dict):
                columns.update(dict.fromkeys(row))
            entries.append(_manifest_entry(path, line, row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--manifest {path} cannot be read: {reason}; give UTF-8 text") from error
    if not entries:
        raise UserError(f"--manifest {path} has no line; give one for each clip")
    if columns and "video" not in columns:
        raise UserError(
            f"--manifest {path} has no column 'video' (found: {', '.join(columns)}); rename the "
            "one that holds the paths of the videos"
        )
    return merge(entries), [column for column in columns if not is_known(column)]


def _manifest_entry(manifest: Path, line: int, row: Any) -> Entry | Reject:
    name = f"{manifest.name} line {line}"
    if isinstance(row, str):
        return Reject(name, row)
    video = row.get("video")
    if not isinstance(video, str) or not video.strip():
        return Reject(name, "video is empty")
    try:
        # Joined, not resolved: a link keeps the name that the user gave it.
        return parse(row, name=name, source=video, path=Path(os.path.join(manifest.parent, video)))
    except BadRow as error:
        return Reject(name, str(error))


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, row), or (line number, what is wrong with it)."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, f"is not JSON: {error}"
                continue
            yield number, row if isinstance(row, dict) else "is not a JSON object"


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """As `_jsonl_rows`; an empty cell is absent, but a row that says nothing is kept as it is."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        if reader.fieldnames:
            reader.fieldnames = [name.strip() for name in reader.fieldnames]
        for row in reader:
            if None in row or None in row.values():
                cells = len(reader.fieldnames or ())
                yield reader.line_num, f"does not have the {cells} cells of the header"
                continue
            filled = {column: cell for column, cell in row.items() if cell.strip()}
            yield reader.line_num, filled if _says(filled) else row


def _says(row: dict[str, str]) -> bool:
    """Whether a row has a text; if not, its empty caption is an error and not an absent one."""
    texts = ("caption", "captions", "query", "answer", "questions")
    return any(column.split(".")[0] in texts for column in row)
