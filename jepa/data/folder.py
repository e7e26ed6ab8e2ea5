"""Folders of pictures and videos, a folder a class, read in place: nothing is converted.

    DIR/SPLIT/CLASS/any/where/below.jpg      and DIR/SPLIT/picture.jpg, which is of no class

n files of a split.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import av
import numpy as np

from jepa.data.entries import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from jepa.data.images import LABEL, class_caption
from jepa.data.schema import Record
from jepa.errors import UserError

PREFIX = "folder:"
_NUMBER = re.compile(r"[0-9]+")


class FolderSplit:
    """One split of a folder of classes, with the interface of `dataset.Split`.

    Files come class by class, all in natural order (`2.jpg` before `10.jpg`). A file is a video or
    a picture by its suffix; others are left out, as are names that begin with a dot. A file that
    cannot be opened is a record that cannot be decoded. Picklable.

    Attributes:
        name: Of the split.
        classes: Names of the class folders of all splits, in natural order, so that all splits
            number them alike.
        class_ids: int32 [n], the class of each file; -1 for one in no class folder.
        digest: Of names and sizes of the files.
    """

    def __init__(self, directory: str | Path, split: str):
        """List the files; none is opened.

        Raises:
            UserError: no such folder or split, or a class folder without a file.
        """
        self._directory, self.name = Path(directory), split
        if not self._directory.is_dir():
            raise UserError(
                f"data.path is '{PREFIX}{directory}', which is no folder; name one that holds "
                "SPLIT/CLASS/files"
            )
        splits = _folders(self._directory)
        if split not in splits:
            raise UserError(
                f"{self._directory} has no folder {split!r} for the split; it has "
                f"{', '.join(splits) or 'none'}; set data.split to one of them, or put the class "
                f"folders (or pictures of no class) into {self._directory / split}"
            )
        every = {name for one in splits for name in _folders(self._directory / one)}
        for name in every:
            if _plain(name) != name:
                raise UserError(
                    f"{directory} has the class folder '{_plain(name)}', whose name is not UTF-8; "
                    "rename it"
                )
        self.classes = tuple(_natural(every))
        self._files: list[str] = []
        self.class_ids = np.array(list(self._list()), np.int32)
        self.digest = self._sum()

    def _list(self) -> Iterator[int]:
        """Fill `_files`, relative to the split's folder; yields the class of each."""
        root = self._directory / self.name
        here = set(_folders(root))
        for number, name in enumerate(self.classes):
            found = _media(root / name, name) if name in here else []
            if name in here and not found:
                known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
                raise UserError(
                    f"the class folder {root / name} holds no picture and no video; fill it or "
                    f"remove it (looked for {known})"
                )
            self._files += found
            yield from [number] * len(found)
        loose = [name for name in os.listdir(root) if _is_media(name) and name not in here]
        self._files += _natural(loose)
        yield from [-1] * len(loose)

    def _sum(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file in self._files:
            try:
                size = os.stat(self._path(file)).st_size
            except OSError:
                size = -1  # a link to nowhere; it cannot be decoded either
            digest.update(f"{file}\0{size}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _path(self, file: str) -> str:
        return os.path.join(self._directory, self.name, file)

    def __len__(self) -> int:
        return len(self._files)

    def record(self, index: int, video: bool = True) -> Record:
        """The file at `index`; with `video=False` only its header is read."""
        file = self._files[index]
        number = int(self.class_ids[index])
        label = self.classes[number] if number >= 0 else None
        try:
            # Opened here, since FFmpeg takes some names for patterns or addresses.
            with open(self._path(file), "rb") as source:
                data = source.read() if video else b""
                header = _header(io.BytesIO(data) if video else source, _suffix(file))
        except (OSError, av.error.FFmpegError, ValueError):
            data = b""  # which cannot be decoded, and is counted where it is tried
            header = {"width": 1, "height": 1, "frames": 1, "fps": 0.0, "media": "image"}
        return Record(
            key=_plain(f"{self.name}/{file}"),
            video=data,
            captions=() if label is None else (class_caption(label.replace("_", " ")),),
            labels={} if label is None else {LABEL: label},
            source=f"{PREFIX}{self._directory}",
            **header,
        )


def _header(source: Any, suffix: str) -> dict[str, Any]:
    """What a file says of itself, as fields of a record; ValueError where it does not say enough.

    A container that does not count its frames is read through, without decoding.
    """
    with av.open(source, metadata_errors="ignore") as container:
        if not container.streams.video:
            raise ValueError("there is no video stream in it")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise ValueError("nothing here can decode its codec")
        fields = {"width": context.width, "height": context.height, "codec": context.name}
        if min(context.width, context.height) < 1:
            raise ValueError("it has no size")
        if suffix in IMAGE_SUFFIXES:
            return {**fields, "frames": 1, "fps": 0.0, "media": "image", "colour_range": "pc"}
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        count = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        if rate <= 0 or count < 1:
            raise ValueError("it has no frame rate or no frame")
        return {**fields, "frames": count, "fps": rate, "media": "video"}


def _folders(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return _natural(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    where = _plain(os.fsdecode(error.filename or "a folder"))
    raise UserError(
        f"{where} cannot be listed ({error.strerror}); let this user read it, or remove it"
    ) from error


def _media(directory: Path, prefix: str) -> list[str]:
    """Files of pictures and videos below a folder, as `prefix/...`, in natural order.

    A link that leads to a folder which it lies in, at whatever depth, is not followed.
    """
    found = []
    above = {str(directory): {os.path.realpath(directory)}}
    for root, folders, files in os.walk(directory, onerror=_refuse, followlinks=True):
        around, inner = above.pop(root), {}
        for name in folders:
            real = os.path.realpath(os.path.join(root, name))
            if not name.startswith(".") and real not in around:
                inner[name] = around | {real}
        folders[:] = inner
        above.update((os.path.join(root, name), reals) for name, reals in inner.items())
        inside = os.path.join(prefix, os.path.relpath(root, directory))
        found += [os.path.normpath(os.path.join(inside, name)) for name in filter(_is_media, files)]
    return _natural(found)


def _plain(name: str) -> str:
    """A name whose bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_media(name: str) -> bool:
    return not name.startswith(".") and _suffix(name) in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _natural(names: Iterable[str]) -> list[str]:
    """Sorted with numbers (of up to twenty digits) by their value, else by letters."""
    return sorted(names, key=lambda name: (_NUMBER.sub(_padded, name), name))


def _padded(number: re.Match[str]) -> str:
    return number[0].zfill(20)
