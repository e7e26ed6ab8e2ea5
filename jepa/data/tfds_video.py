"""Sets of videos by their TFDS name. TensorFlow is not imported.

TFDS keeps a video (its `Video` feature) as a list of encoded pictures, and cannot open such a set
without TensorFlow. So the files that lie beside the shards are read here. A record's pictures are
joined to one file of video, as they are: nothing is decoded and encoded again.
"""

from __future__ import annotations

import fractions
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from jepa.data.images import (
    PREFIX,
    ImageSplit,
    class_fields,
    class_names,
    codec_of,
    not_installed,
    picture_size,
    unreadable,
)
from jepa.data.schema import Record

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_FORMAT = "array_record"
_SECOND = fractions.Fraction(1)


class TfdsVideoSplit:
    """One split of a prepared TFDS set of videos, with the interface of `dataset.Split`.

    Captions and labels are as in `images.ImageSplit`. TFDS keeps no frame rate: records say one
    frame a second, and `data.fps` must be left out. Picklable: each process opens it anew.

    Attributes:
        name: Of the split.
        classes: Names of the classes in the set's own order; () for a set without labels.
        timed: Whether frame rates are known: never.
        digest: Of the set's name and version, the split and its length.
    """

    timed = False

    def __init__(self, name: str, split: str, directory: Path):
        """Open.

        Args:
            name: As in `images.ImageSplit`.
            split: TFDS split, slices included.
            directory: Where the set lies, as `prepared` found it.

        Raises:
            UserError: no such split, a shard is not there, or they are not ArrayRecord.
        """
        self._name, self.name, self._directory = name, split, directory
        features = _features(directory)
        self._video = _first(features, "video", "Video")
        self._label = _first(features, "label", "ClassLabel")
        self.classes = class_names(_names(directory, features, self._label))
        self._open()
        info = f"{name} {directory.name} {split} {len(self)}"
        self.digest = hashlib.blake2b(info.encode(), digest_size=16).hexdigest()

    def _open(self) -> None:
        from array_record.python import array_record_data_source

        self._lock = threading.Lock()
        try:
            files = _instructions(self._directory, self.name)
            self._source = array_record_data_source.ArrayRecordDataSource(files)
            len(self._source)
        except ImportError as error:
            raise not_installed(self._name, error) from error
        except Exception as error:  # of many types, as in `images`
            raise unreadable(self._name, self.name, error) from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_source", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._source)

    def record(self, index: int, video: bool = True) -> Record:
        """The video at `index` as a record; with `video=False` without its bytes."""
        from tensorflow_datasets.proto import tf_example_pb2

        with self._lock:
            data = self._source[index]
        values = tf_example_pb2.Example.FromString(data).features.feature
        frames = values[self._video].bytes_list.value
        number = int(values[self._label].int64_list.value[0]) if self._label else -1
        label = self.classes[number] if 0 <= number < len(self.classes) else None
        height, width = picture_size(frames[0]) if frames else (1, 1)
        return Record(
            key=f"{self._name}/{self.name}/{index}",
            video=join(frames, height, width) if video else b"",
            width=width,
            height=height,
            frames=len(frames),
            fps=1.0,
            media="video",
            codec=codec_of(frames[0]) if frames else "unknown",
            colour_range="pc",
            source=f"{PREFIX}{self._name}",
            **class_fields(label),
        )


def open_split(name: str, split: str) -> ImageSplit | TfdsVideoSplit:
    """A split of the TFDS set `name`, of pictures or of videos; UserError as they raise."""
    directory = prepared(name)
    if directory is not None and _first(_features(directory), "video", "Video"):
        return TfdsVideoSplit(name, split, directory)
    return ImageSplit(name, split)


def prepared(name: str) -> Path | None:
    """Where a set lies, `DATA/NAME[/CONFIG]/VERSION`, by default its newest version; or None."""
    place = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    stem, _, version = name.partition(":")
    above = Path(place).expanduser() / stem
    if not above.is_dir():
        return None
    found = [path for path in above.iterdir() if _VERSION.fullmatch(path.name)]
    found = [path for path in found if version in ("", path.name)]
    return max(found, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def join(frames: Sequence[bytes], height: int, width: int) -> bytes:
    """Encoded pictures as one file of video (QuickTime), a picture a second.

    Returns:
        No bytes, which cannot be decoded, where there is no picture or of an unknown kind.
    """
    codec = codec_of(frames[0]) if frames else "unknown"
    if codec not in ("mjpeg", "png"):
        return b""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_mux_stream(codec, rate=1, width=width, height=height)
        for place, frame in enumerate(frames):
            packet = av.Packet(frame)
            packet.stream, packet.time_base, packet.is_keyframe = stream, _SECOND, True
            packet.pts = packet.dts = place
            packet.duration = 1
            container.mux(packet)
    return file.getvalue()


def _features(directory: Path) -> dict[str, Any]:
    """{name: what `features.json` says of it}; {} where it cannot be read, which TFDS will say."""
    try:
        said = json.loads((directory / "features.json").read_text("utf-8"))
        return dict(said["featuresDict"]["features"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _first(features: dict[str, Any], usual: str, kind: str) -> str | None:
    found = [
        key
        for key, said in features.items()
        if isinstance(said, dict)
        and str(said.get("pythonClassName", "")).rpartition(".")[2] == kind
    ]
    return usual if usual in found else next(iter(found), None)


def _names(directory: Path, features: dict[str, Any], label: str | None) -> list[str]:
    """What TFDS calls the classes of a feature: their names, or numbers where it has none."""
    if label is None:
        return []
    file = directory / f"{label}.labels.txt"
    if file.is_file():
        return file.read_text("utf-8").split("\n")[:-1]
    count = features[label].get("classLabel", {}).get("numClasses", 0)
    return [str(number) for number in range(int(count))]


def _instructions(directory: Path, split: str) -> Any:
    """Files of a split, or slice of one, and what part of each."""
    import tensorflow_datasets as tfds

    said = json.loads((directory / "dataset_info.json").read_text("utf-8"))
    if said.get("fileFormat") != _FORMAT:
        raise ValueError(f"its files are {said.get('fileFormat', 'tfrecord')}")
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=said["name"], filetype_suffix=_FORMAT
    )
    infos = []
    for one in said["splits"]:
        form = {"template": one["filepathTemplate"]} if one.get("filepathTemplate") else {}
        infos.append(
            tfds.core.SplitInfo(
                name=one["name"],
                shard_lengths=[int(n) for n in one.get("shardLengths", ())],
                num_bytes=int(one.get("numBytes", 0)),
                filename_template=template.replace(split=one["name"], **form),
            )
        )
    return tfds.core.SplitDict(infos)[split].file_instructions
