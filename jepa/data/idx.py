"""Image sets in IDX files, the format of MNIST: one array of grey pictures, one of labels.

They are read whole, gzipped or not, and stay in memory as they are. n pictures of H W pixels.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.images import LABEL, class_caption
from jepa.data.schema import Record
from jepa.errors import UserError

PREFIX = "idx:"
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_NAME = re.compile(r"(?P<split>.+)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")
# MNIST's name of its test split.
_TEST = "t10k"
_UNSIGNED_BYTES = 8


class IdxSplit:
    """One split of a folder of IDX files, with the interface of `dataset.Split`.

    Labels are the digits, or the names of clothes in a folder whose name has "fashion" in it.
    Picklable: each process reads the files anew.

    Attributes:
        name: Of the split.
        classes: Names of the classes, by number.
        class_ids: int32 [n], the class of each picture.
        pixels: uint8 [n, H, W].
        digest: Of pictures and labels.
    """

    def __init__(self, directory: str | Path, split: str):
        """Read.

        Args:
            directory: Holds `SPLIT-images-idx3-ubyte` and `SPLIT-labels-idx1-ubyte`, or the same
                with `.gz`.
            split: Such as "train"; "test" finds MNIST's "t10k" too.

        Raises:
            UserError: no such folder or split, or a file is damaged or does not fit the other.
        """
        self._directory, self.name = Path(directory), split
        self._read()

    def _read(self) -> None:
        found = _find(self._directory)
        prefix = self.name if self.name in found or self.name != "test" else _TEST
        files = found.get(prefix, {})
        if not files:
            known = sorted("test" if name == _TEST else name for name in found)
            raise UserError(
                f"{self._directory} has no split {self.name!r}; it has {', '.join(known)}"
            )
        self.pixels = read(_file(files, "images", prefix, self._directory), 3)
        if not math.prod(self.pixels.shape[1:]):
            raise UserError(
                f"{files['images']} holds pictures of "
                f"{'x'.join(map(str, self.pixels.shape[1:]))} pixels; get the file again"
            )
        labels = read(_file(files, "labels", prefix, self._directory), 1)
        if len(labels) != len(self.pixels):
            raise UserError(
                f"{files['images']} holds {len(self.pixels)} pictures and {files['labels'].name} "
                f"{len(labels)} labels; get both files again"
            )
        self.class_ids = labels.astype(np.int32)
        self.classes = self._names(found, prefix)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(str(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(np.ascontiguousarray(labels).data)
        self.digest = digest.hexdigest()

    def _names(self, found: dict[str, dict[str, Path]], prefix: str) -> tuple[str, ...]:
        # A test split may lack the last class, and must number the others as the train split does.
        family = [name for name in found if name.rpartition("-")[0] == prefix.rpartition("-")[0]]
        ids = [read(found[name]["labels"], 1) for name in family if "labels" in found[name]]
        count = 1 + max(int(part.max(initial=0)) for part in ids)
        if "fashion" in self._directory.resolve().name.lower() and count <= len(FASHION):
            return FASHION
        return tuple(map(str, range(count)))

    def __getstate__(self) -> dict[str, Any]:
        return {"_directory": self._directory, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read()

    def __len__(self) -> int:
        return len(self.pixels)

    def record(self, index: int, video: bool = True) -> Record:
        """The picture at `index`; its bytes are the rows of the array, not an encoded file."""
        picture = self.pixels[index]
        label = self.classes[self.class_ids[index]]
        return Record(
            key=f"{self._directory.name}/{self.name}/{index}",
            video=picture.tobytes() if video else b"",
            width=picture.shape[1],
            height=picture.shape[0],
            frames=1,
            fps=0.0,
            media="image",
            codec="rawvideo",
            colour_range="pc",
            captions=(class_caption(label),),
            labels={LABEL: label},
            source=f"{PREFIX}{self._directory}",
        )


def read(path: Path, rank: int) -> np.ndarray:
    """The array of bytes in an IDX file, gzipped where its name ends in `.gz`.

    Args:
        path: The file.
        rank: Number of dimensions that it must have.

    Raises:
        UserError: it cannot be read, is no such array, or is longer or shorter than it says.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); get the file again") from error
    begin = 4 + 4 * rank
    if data[:4] != bytes((0, 0, _UNSIGNED_BYTES, rank)):
        raise UserError(
            f"{path} begins with {data[:4].hex(' ') or 'nothing'} instead of "
            f"00 00 08 {rank:02x}, so it is no IDX file of bytes in {rank} dimensions; get the "
            "file again"
        )
    sizes = tuple(
        int(n) for n in np.frombuffer(data[4:begin], ">u4", min(rank, len(data[4:]) // 4))
    )
    promised = math.prod(sizes) if len(sizes) == rank else -1
    if promised != len(data) - begin:
        raise UserError(
            f"{path} holds {max(len(data) - begin, 0)} bytes where its header says "
            f"{'x'.join(map(str, sizes))}; get the file again"
        )
    return np.frombuffer(data, np.uint8, offset=begin).reshape(sizes)


def _find(directory: Path) -> dict[str, dict[str, Path]]:
    """{split as in the file names: {"images", "labels": file}}."""
    if not directory.is_dir():
        raise UserError(
            f"data.path is '{PREFIX}{directory}', which is no folder; name one with IDX files "
            "(Debian's package dataset-fashion-mnist puts them into "
            "/usr/share/datasets/fashion-mnist)"
        )
    found: dict[str, dict[str, Path]] = {}
    # Reverse, so that of a file and its gzipped self the former is taken.
    for path in sorted(directory.iterdir(), reverse=True):
        match = _NAME.fullmatch(path.name)
        if match and not path.is_dir():  # some archives unpack each file into a folder of its name
            found.setdefault(match["split"], {})[match["kind"]] = path
    if not found:
        raise UserError(
            f"data.path is '{PREFIX}{directory}', which holds no IDX file; their names are such as "
            "train-images-idx3-ubyte.gz"
        )
    return found


def _file(files: dict[str, Path], kind: str, prefix: str, directory: Path) -> Path:
    if kind not in files:
        rank = {"images": 3, "labels": 1}[kind]
        raise UserError(
            f"{directory} has no {prefix}-{kind}-idx{rank}-ubyte beside "
            f"{next(iter(files.values())).name}; get that file too"
        )
    return files[kind]
