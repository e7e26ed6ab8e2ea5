"""Image sets by their TFDS name, as records of one frame. TensorFlow is not imported.

TFDS reads sets that were prepared as ArrayRecord (`file_format="array_record"`) without it. The
encoded images are passed on as they are and decoded like every other clip.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import av

from jepa.data.schema import Caption, Record
from jepa.errors import UserError

PREFIX = "tfds:"
QUERY = "What is in the picture?"
LABEL = "class"
_CODECS = {b"\xff\xd8": "mjpeg", b"\x89P": "png", b"RI": "webp", b"GI": "gif"}


class ImageSplit:
    """One split of a prepared TFDS set, with the interface of `dataset.Split`.

    An image is captioned "a photo of a CLASS" and has the label `class`, by the set's `label`
    feature (or the first feature with class names); one whose class is hidden (-1) or a set without
    classes has neither. Picklable: each process opens it anew.

    Attributes:
        name: Of the split.
        classes: Names of the classes in the set's own order, underscores made spaces; () for none.
        digest: Of the set's name and version, the split and its length.
    """

    def __init__(self, name: str, split: str):
        """Open.

        Args:
            name: TFDS name, with config and version if need be (`imagenet2012:5.1.0`). The data
                directory is TFDS's own (`TFDS_DATA_DIR`).
            split: TFDS split, slices such as `train[:1%]` included.

        Raises:
            UserError: tensorflow-datasets is not installed, the set is not prepared as ArrayRecord,
                or it has no image.
        """
        self._name, self.name = name, split
        self._lock = threading.Lock()
        self._open()
        features = self._source.dataset_info.features
        self._image = _first(features, "image", "Image")
        if not self._image:
            raise UserError(
                f"the TFDS set {name!r} has no Image and no Video feature; choose a set of "
                "pictures or of videos"
            )
        self._label = _first(features, "label", "ClassLabel")
        self.classes = class_names(features[self._label].names if self._label else ())
        info = f"{self._source.dataset_info.full_name} {split} {len(self)}"
        self.digest = hashlib.blake2b(info.encode(), digest_size=16).hexdigest()

    def _open(self) -> None:
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise not_installed(self._name, error) from error
        try:
            # Read here, because TFDS reads it once, when it is imported.
            place = os.environ.get("TFDS_DATA_DIR")
            builder = tfds.builder(self._name, data_dir=place, try_gcs=False)
            image = {
                key: tfds.decode.SkipDecoding()
                for key, feature in builder.info.features.items()
                if type(feature).__name__ == "Image"
            }
            self._source = builder.as_data_source(split=self.name, decoders=image)
            len(self._source)
        except Exception as error:  # TFDS raises many types for "not there" and "no such split"
            raise unreadable(self._name, self.name, error) from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_source", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._open()

    def __len__(self) -> int:
        return len(self._source)

    def record(self, index: int, video: bool = True) -> Record:
        """The image at `index` as a record; with `video=False` without its bytes."""
        with self._lock:
            example = self._source[index]
        data = bytes(example[self._image])
        number = int(example[self._label]) if self._label else -1
        label = self.classes[number] if number >= 0 else None  # test splits may hide theirs as -1
        height, width = picture_size(data)
        return Record(
            key=f"{self._name}/{self.name}/{index}",
            video=data if video else b"",
            width=width,
            height=height,
            frames=1,
            fps=0.0,
            media="image",
            codec=codec_of(data),
            colour_range="pc",
            source=f"{PREFIX}{self._name}",
            **class_fields(label),
        )


def not_installed(name: str, error: ImportError) -> UserError:
    """What to raise where TFDS is not there to read the set `name`."""
    return UserError(
        f"data.path is '{PREFIX}{name}', which needs tensorflow-datasets ({error}); run "
        "`pip install tensorflow-datasets`"
    )


def unreadable(name: str, split: str, error: Exception) -> UserError:
    """What to raise where a split of the set `name` cannot be opened."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return UserError(
        f"the TFDS set {name!r}, split {split!r}, cannot be read ({type(error).__name__}: "
        f"{reason}); prepare it with file_format='array_record' and set TFDS_DATA_DIR to where it "
        "lies"
    )


def class_caption(name: str) -> Caption:
    """What a picture of a class is captioned."""
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return Caption("class", f"a photo of {article} {name}", "brief")


def class_fields(label: str | None) -> dict[str, Any]:
    """The fields of a record that say its class, if it has one."""
    if label is None:
        return {}
    return {"captions": (class_caption(label),), "labels": {LABEL: label}}


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes as texts: underscores made spaces, and no two alike."""
    return _distinct([str(name).replace("_", " ") for name in names])


def codec_of(data: bytes) -> str:
    """FFmpeg's name of the codec of an encoded picture."""
    return _CODECS.get(data[:2], "unknown")


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names with a number behind those that an earlier class has already (two kinds of crane)."""
    found: list[str] = []
    for name in names:
        number, unlike = 1, name
        while unlike in found:
            number += 1
            unlike = f"{name} {number}"
        found.append(unlike)
    return tuple(found)


def _first(features: Any, usual: str, kind: str) -> str | None:
    found = [key for key, feature in features.items() if type(feature).__name__ == kind]
    return usual if usual in found else next(iter(found), None)


def picture_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, read from its header; (1, 1) where it has none."""
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            context = container.streams.video[0].codec_context
            return (context.height, context.width) if context is not None else (1, 1)
    except (av.error.FFmpegError, IndexError):
        return 1, 1
