"""One split of one dataset as rows of uint8 frames: decoded on demand, or read from a cache.

B rows, T frames, S size, n frames of a clip. Both kinds choose frames, crop and mirror by the same
numbers, so a cache changes the cost of a batch and nothing else.
"""

from __future__ import annotations

import abc
import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import logging

from jepa import hashing
from jepa.data import cache, decode, sampling, transforms
from jepa.data.config import DataConfig
from jepa.data.jobs import Progress
from jepa.data.sampling import Purpose
from jepa.data.schema import Record
from jepa.data.stores import Files, Memory
from jepa.data.transforms import Planes
from jepa.errors import UserError

_BUILD_CHUNK = 64
# Of fewer records, a share of unreadable ones says little about the dataset.
_FAIR_SAMPLE = 1000


@dataclasses.dataclass(frozen=True)
class View:
    """How rows are seen: what of a DataConfig, and which random numbers, decide their pixels.

    Attributes:
        config: The data config.
        seed: Of the random choices.
        random: Whether windows, crops and mirroring are drawn; otherwise the middle of the clip,
            its centre, unmirrored (evaluation).
    """

    config: DataConfig
    seed: int
    random: bool = True

    def indices(self, counts: Any, rates: Any, positions: np.ndarray) -> np.ndarray:
        """Frames int64 [B, T] of clips with `counts` frames at `rates`, control included."""
        config = self.config
        if self.random and config.sampling == "random":
            offset = hashing.uniform(self.seed, positions, Purpose.WINDOW)
        else:
            offset = np.full(len(positions), 0.5)
        chosen = sampling.frame_indices(
            counts, rates, frames=config.frames, fps=config.fps, offset=offset
        )
        return sampling.control_frames(
            chosen, config.frame_control, seed=self.seed, positions=positions
        )

    @property
    def crops(self) -> bool:
        """Whether a part of the frame is drawn for each row."""
        return self.random and self.config.crop == "random_resized"

    def boxes(self, positions: np.ndarray, aspect: float) -> np.ndarray:
        """The random crops of rows with frames of one aspect, as `transforms.random_boxes`."""
        uniforms = hashing.uniform(self.seed, positions[:, None], Purpose.CROP + np.arange(4))
        return transforms.random_boxes(
            uniforms, aspect, self.config.crop_scale, self.config.crop_ratio
        )

    def box(self, position: int, aspect: float) -> transforms.Box | None:
        """The random crop of one row, or None for the centre."""
        if not self.crops:
            return None
        return transforms.Box(*self.boxes(np.array([position]), aspect)[0].tolist())

    def mirrored(self, positions: np.ndarray) -> np.ndarray:
        """Which rows are mirrored, bool [B]."""
        if not (self.random and self.config.flip):
            return np.zeros(len(positions), bool)
        return hashing.uniform(self.seed, positions, Purpose.FLIP) < 0.5


def _aspect(record: Record, turned: bool) -> float:
    """Width over height of the frames as they are shown; records say it as they are stored."""
    return record.height / record.width if turned else record.width / record.height


def planes(config: DataConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of a clip's frames and type of each plane."""
    shapes = transforms.shapes(config.size, config.pixels)
    return {name: ((config.frames, *shape), "uint8") for name, shape in shapes.items()}


class Clips(abc.ABC):
    """One split. `split` has `__len__` and `record(i, video=True)`, as `dataset.Split`."""

    def __init__(self, split: Any, view: View):
        self.split = split
        self.view = view

    def __len__(self) -> int:
        return len(self.split)

    def planes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of a row and type of each plane."""
        return planes(self.view.config)

    def empty(self, batch: int) -> Planes:
        """Planes of `batch` rows for `load`: uninitialised, or grey where nothing is to be seen."""
        config = self.view.config
        blank = config.frame_control == "blank"
        return transforms.empty((batch, config.frames), config.size, config.pixels, grey=blank)

    @abc.abstractmethod
    def load(
        self, numbers: np.ndarray, positions: np.ndarray, out: Planes, rows: np.ndarray
    ) -> tuple[list[Record | None], dict[int, str]]:
        """Write records `numbers` [R] into rows `rows` [R] of the planes `out` [B, T, ...].

        Returns:
            The records, R without their encoded bytes, and why rows could not be read: {index
            into R: reason}. Those rows of `out` are undefined.
        """


class EncodedClips(Clips):
    """Reads and decodes what is asked for."""

    def load(
        self, numbers: np.ndarray, positions: np.ndarray, out: Planes, rows: np.ndarray
    ) -> tuple[list[Record | None], dict[int, str]]:
        """See `Clips.load`."""
        records: list[Record | None] = []
        failed: dict[int, str] = {}
        blank = self.view.config.frame_control == "blank"
        for i, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            record = self.split.record(number, video=not blank)
            records.append(record)
            if blank:
                continue
            try:
                frames = self._decode(record, positions[i : i + 1])
            except decode.DecodeError as error:
                failed[i] = f"{record.key}: {error}"
                continue
            for name, target in out.items():
                plane = target[row]
                for time, frame in enumerate(frames):
                    plane[time] = frame[name]
        if not blank:
            transforms.mirror(out, rows[self.view.mirrored(positions)])
        return records, failed

    def _decode(self, record: Record, position: np.ndarray) -> list[Planes]:
        count, rate, _ = decode.grid(record)
        indices = self.view.indices([count], [rate], position)[0]
        config = self.view.config
        converters: dict[bool, transforms.Converter] = {}

        def convert(frame: av.VideoFrame) -> Planes:
            lies = transforms.quarter_turns(frame) % 2 == 1
            if lies not in converters:
                box = self.view.box(int(position[0]), _aspect(record, lies))
                converters[lies] = transforms.Converter(config.size, config.pixels, box)
            return converters[lies](frame)

        return decode.decode_clip(record.video, decode.frame_times(record, indices), convert)


class CachedClips(Clips):
    """Every clip decoded once; a batch is gathered from one array. Records are kept in memory.

    Frames are kept at the size of the batch, or, where random crops are wanted, in 4:2:0 at the
    size of the source.
    """

    def __init__(self, split: Any, view: View, directory: Path | None):
        """Read the cache in `directory`, making it first where needed; None: keep it in memory."""
        super().__init__(split, view)
        config = view.config
        self._native = view.crops
        self._size = None if self._native else config.size
        self._pixels = "yuv420" if self._native else config.pixels
        self._records: list[Record] = []
        self.bad: dict[int, str] = {}
        if directory is None:
            self._build(Memory())
            return
        path = directory / f"{split.name}-{self._fingerprint()}"
        found = self._read(path)
        if found is None:
            if path.exists():
                logging.warning("%s is damaged; its clips are decoded again", path)
            try:
                with cache.new_directory(path, stays=lambda: self._read(path) is not None) as new:
                    self._build(Files(new))
            except OSError as error:
                raise UserError(
                    f"data.cache is 'disk', but {path} cannot be written ({error}); make room "
                    "there or set it to 'memory' or 'none'"
                ) from error
            found = self._read(path)
        if found is None:
            raise UserError(
                f"data.cache is 'disk', but {path} cannot be read back; delete it, or set it to "
                "'memory' or 'none'"
            )
        self.bad, table, planes = found
        if not self._records:
            self._records = [split.record(i, video=False) for i in range(len(split))]
        self._set(table, planes)

    def _read(self, path: Path) -> tuple[dict[int, str], np.ndarray, Planes] | None:
        """(bad, table, planes) of the cache at `path`, or None unless it is whole.

        NumPy refuses to map a file that is shorter than its header says.
        """
        meta = cache.read_meta(path)
        if meta is None:
            return None
        try:
            bad = {int(number): str(reason) for number, reason in meta["bad"].items()}
            table = np.load(path / "clips.npy")
            planes = {n: np.load(path / f"{n}.npy", mmap_mode="r") for n in self._names}
        except (OSError, ValueError, EOFError, KeyError, AttributeError):
            return None
        if table.shape != (len(self.split), 3):
            return None
        counts, heights, widths = table.T
        length = int((counts * heights * widths if self._native else counts).sum())
        halves = {"uv": 2} if self._native else {}  # half as many bytes as "y", laid out flat
        whole = all(len(p) == length // halves.get(n, 1) for n, p in planes.items())
        return (bad, table, planes) if whole else None

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(transforms.shapes(2, self._pixels))

    def _fingerprint(self) -> str:
        said = f"1 {self.split.digest} {self._size} {self._pixels}"
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def _set(self, table: np.ndarray, planes: Planes) -> None:
        """`table` int64 [clips, (frames, height, width)], zero frames for a bad clip."""
        self._counts, self._heights, self._widths = table.T
        self._rates = np.array([decode.grid(record)[1] for record in self._records])
        self._planes = planes
        self._first = np.cumsum(self._counts) - self._counts
        pixels = self._counts * self._heights * self._widths
        self._offset = np.cumsum(pixels) - pixels

    def load(
        self, numbers: np.ndarray, positions: np.ndarray, out: Planes, rows: np.ndarray
    ) -> tuple[list[Record | None], dict[int, str]]:
        """See `Clips.load`."""
        records: list[Record | None] = [self._records[number] for number in numbers.tolist()]
        failed = {
            i: self.bad[number]
            for i, number in enumerate(numbers.tolist() if self.bad else ())
            if number in self.bad
        }
        if self.view.config.frame_control == "blank":
            return records, {}
        counts = np.maximum(self._counts[numbers], 1)
        indices = self.view.indices(counts, self._rates[numbers], positions)
        if self._native:
            for i in range(len(numbers)):
                if i not in failed:
                    self._crop(int(numbers[i]), int(positions[i]), indices[i], out, int(rows[i]))
        else:
            # Zero-frame (bad) clips point at their neighbour or behind the end; they are redrawn.
            places = np.minimum(
                self._first[numbers][:, None] + indices, max(int(self._counts.sum()) - 1, 0)
            )
            whole = len(rows) == len(next(iter(out.values())))
            for name, plane in self._planes.items():
                if whole:  # straight into place, without a copy between
                    np.take(plane, places, axis=0, out=out[name], mode="clip")
                else:
                    out[name][rows] = plane[places]
        transforms.mirror(out, rows[self.view.mirrored(positions)])
        return records, failed

    def _crop(self, number: int, position: int, indices: np.ndarray, out: Planes, row: int) -> None:
        config = self.view.config
        height, width = int(self._heights[number]), int(self._widths[number])
        count, start = int(self._counts[number]), int(self._offset[number])
        clip = {}
        for name, flat in self._planes.items():
            part, shape = (1, (height, width)) if name == "y" else (2, (height // 2, width // 2, 2))
            end = start + count * height * width
            clip[name] = flat[start // part : end // part].reshape(count, *shape)
        record = self._records[number]
        # Whichever way the record says it; the frames were turned, and cut to even sizes, before.
        aspect = min(
            (_aspect(record, turned) for turned in (False, True)),
            key=lambda stored: round(abs(np.log(width / height / stored)), 6),
        )
        box = self.view.box(position, aspect)
        assert box is not None
        for time, index in enumerate(indices):
            frame = {name: np.asarray(plane[index]) for name, plane in clip.items()}
            cropped = transforms.crop_resize(frame, box, config.size, config.pixels)
            for name, plane in cropped.items():
                out[name][row, time] = plane

    def _build(self, store: Memory | Files) -> None:
        table = np.zeros((len(self.split), 3), np.int64)
        self._records = [self.split.record(i, video=False) for i in range(len(self.split))]
        self._check_room(store)
        numbers = range(len(self.split))
        with (
            concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool,
            Progress(f"decoding {self.split.name} once", len(numbers), "clip") as progress,
        ):
            for begin in range(0, len(numbers), _BUILD_CHUNK):
                chunk = numbers[begin : begin + _BUILD_CHUNK]
                for number, planes in zip(chunk, pool.map(self._whole, chunk), strict=True):
                    if isinstance(planes, str):
                        self.bad[number] = planes
                    else:
                        shape = next(iter(planes.values())).shape
                        table[number] = shape[:3]
                        store.add(planes, flat=self._native)
                    progress.add(1)
        check_unreadable(self.bad.values(), len(self.split), self.view.config.max_bad_fraction)
        self._set(table, store.finish(table, self.bad))

    def _whole(self, number: int) -> Planes | str:
        """All frames of one clip `[n, H, W, ...]`, or why there are none."""
        record = self.split.record(number)
        count, _, _ = decode.grid(record)
        times = decode.frame_times(record, np.arange(count))
        converter = transforms.Converter(self._size, self._pixels)
        try:
            frames = decode.decode_clip(record.video, times, converter)
        except decode.DecodeError as error:
            return f"{record.key}: {error}"
        return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}

    def _check_room(self, store: Memory | Files) -> None:
        per_pixel = 3.0 if self._pixels == "rgb" else 1.5
        need = 0.0
        for record in self._records:
            area = self._size**2 if self._size else record.width * record.height
            need += decode.grid(record)[0] * area * per_pixel
        have = store.room()
        if need > 0.9 * have:
            raise UserError(
                f"data.cache is {self.view.config.cache!r}, but the decoded split "
                f"{self.split.name!r} takes {need / 2**30:.1f} GiB and {have / 2**30:.1f} GiB are "
                "free; set it to 'none' or make data.size smaller"
            )


def check_unreadable(
    reasons: Iterable[str], records: int, fraction: float, *, seen: int | None = None
) -> None:
    """Raise UserError, naming some, when too many of a dataset's records are unreadable.

    Args:
        reasons: Why, one for each unreadable record.
        records: In the dataset.
        fraction: The share of them that may be unreadable.
        seen: How many of them were read so far; all by default. The share is of these, but of at
            least 1000 where the dataset has so many.
    """
    reasons = list(reasons)
    if seen is not None:
        records = min(records, max(seen, _FAIR_SAMPLE))
    if len(reasons) > fraction * records:
        raise UserError(
            f"{len(reasons)} of {records} records cannot be decoded, more than "
            f"data.max_bad_fraction={fraction} allows: {'; '.join(reasons[:3])}; repair or remove "
            "them, or raise the limit"
        )
