"""What a config may say about data: the keys, their defaults and their checks."""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jepa.errors import UserError, check_known

CHOICES: dict[str, tuple[str, ...]] = {
    "sampling": ("uniform", "random"),
    "crop": ("none", "random_resized"),
    "pixels": ("rgb", "yuv420"),
    "cache": ("none", "memory", "disk"),
    "frame_control": ("none", "single", "shuffled", "blank"),
}
STREAMS = ("video", "text", "label", "masks")
_POSITIVE = ("frames", "size", "tubelet", "query_length", "text_length", "pairs_per_clip")
_NOT_NEGATIVE = ("workers", "threads", "patch")
_MOST_THREADS = 8


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The `data` part of a config; `DataConfig.parse` makes and checks it.

    Attributes:
        path: Directory of a dataset; or `tfds:NAME` for a prepared TFDS set, `idx:DIR` for
            MNIST's files, `folder:DIR` for DIR/SPLIT/CLASS/files, which are read in place.
        mixture: ((path, weight), ...) instead of `path`: datasets drawn from by weight.
        split: Split of every dataset in it.
        streams: What a batch has, of `STREAMS`. "text" stands for the streams `query` and `text`;
            without it records need no texts, and the keys about texts mean nothing. "label" is the
            class of each clip, "masks" are token ids. "video" is always among them.
        label: Which label of the records the stream "label" gives.
        masks: The sampler of the stream "masks" and its options, as `masks.config.from_config`
            takes them: {"sampler": "multiblock"} or {"sampler": "tubes", ...}.
        patch: Pixels of a token's side; with `tubelet` it makes the grid of the masks, and must be
            the encoder's. Needed with masks only.
        tubelet: Frames of a token, for masks; a single frame fills a tubelet.
        frames: Frames per clip, T. Images are repeated T times; a clip that is too short
            repeats its last frame.
        fps: Frames per second to sample at; None spreads the T frames over the whole clip.
        sampling: "random" draws the window (or, without `fps`, the offset of the evenly spread
            frames) anew for each sample; "uniform" takes the middle one. Evaluation is always
            uniform.
        size: Height and width of the frames, H = W. Even when `pixels` is "yuv420".
        crop: "none" resizes the short side and takes the centre; "random_resized" takes a random
            part, the same in all frames of a clip.
        crop_scale: Smallest and largest share of the area of a random crop.
        crop_ratio: Smallest and largest ratio of width to height of a random crop.
        flip: Mirror every second clip left to right. It falsifies captions and answers that name
            left or right, so it is off by default; switch it on only where no text does.
        pixels: "rgb" converts on the host; "yuv420" sends half the bytes and leaves the
            conversion to the device.
        tokenizer: Of the targets: "minilm", "dataset" (the one trained on the dataset's texts),
            or the path of a `tokenizer.json`.
        query_tokenizer: Of the queries; "" for the same as `tokenizer`.
        text_prompt: What stands before every target, by its name among the prompts that lie beside
            its tokenizer ("document", of EmbeddingGemma); "" for nothing.
        query_length: K, token ids per query; longer ones are cut.
        text_length: L, token ids per target; longer ones are cut.
        pairs_per_clip: Query-target pairs drawn for each clip, P: the text streams then have P rows
            a clip, clip by clip. The X-encoder runs once for all of them. A target is drawn twice
            only when the record has no other for the task.
        tasks: {"caption": weight, "question": weight}: how often a sample is which. A record
            that has no text for its task takes the other one.
        caption_levels: Levels of captions that may be targets; () for all.
        caption_weights: {level: weight}: how often a record's captions of a level are drawn beside
            its others, whose weight is 1; {} for all alike.
        caption_query: Query, or queries to draw from, that ask for a caption; () for those the
            dataset names.
        text_features: Directory of cached features of the targets (`cache.TextFeatures`), or
            None: the targets are then token ids.
        video_features: Directories of cached features of the clips (`video_features`), one for each
            dataset; () for the clips themselves. They are of one view of each clip, so nothing of
            it may be drawn at random.
        cache: Decode every clip once and keep it uncompressed in "memory", or on "disk" under
            the dataset's directory. Meant for small sets. IDX files lie in memory anyway.
        workers: Processes that read ahead; 0 for threads in this process.
        threads: Threads that read ahead when `workers` is 0, each one a whole batch of this host,
            so that batches take memory by their number. 0 for one a CPU core but at most 8, or one
            altogether when the clips are cached; on hosts with many cores raise `workers` first.
        frame_control: Takes information out of the video, for comparisons: "single" repeats one
            random frame, "shuffled" permutes the frames, "blank" leaves mid-grey.
        timeout: Seconds that a step waits for a batch before the run ends with an error; a disk
            or a worker process that hangs would otherwise keep it for ever.
        max_bad_fraction: Share of records that may be unreadable before loading stops.
        images: A second set, of images, whose batches are the stream `images` (V-JEPA 2.1): {"path"
            or "mixture", "batch": images of a global batch, and what shall differ from the clips'
            keys, as "size", "masks"}; {} for none. See `joint`.
    """

    path: str = ""
    mixture: tuple[tuple[str, float], ...] = ()
    split: str = "train"
    streams: tuple[str, ...] = ("video", "text")
    label: str = "class"
    masks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    patch: int = 0
    tubelet: int = 1
    frames: int = 8
    fps: float | None = None
    sampling: str = "random"
    size: int = 64
    crop: str = "none"
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.35)
    flip: bool = False
    pixels: str = "rgb"
    tokenizer: str = "minilm"
    query_tokenizer: str = ""
    text_prompt: str = ""
    query_length: int = 16
    text_length: int = 32
    pairs_per_clip: int = 1
    tasks: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"caption": 1.0, "question": 1.0}
    )
    caption_levels: tuple[str, ...] = ()
    caption_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    caption_query: tuple[str, ...] = ()
    text_features: str | None = None
    video_features: tuple[str, ...] = ()
    cache: str = "none"
    workers: int = 0
    threads: int = 0
    frame_control: str = "none"
    timeout: float = 900.0
    max_bad_fraction: float = 0.01
    images: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def parse(config: DataConfig | Mapping[str, Any]) -> DataConfig:
        """Make one from a mapping (a ConfigDict, say); keys left out take their defaults.

        Raises:
            UserError: an unknown key, a value out of range, or two keys that exclude each other.
        """
        if isinstance(config, DataConfig):
            return config
        known = {field.name for field in dataclasses.fields(DataConfig)}
        values = dict(config.items())
        check_known("data", values, known)
        for key in ("path", "text_features"):
            if isinstance(values.get(key), os.PathLike):
                values[key] = os.fspath(values[key])
        for key in ("streams", "caption_levels", "caption_query", "video_features"):
            if isinstance(values.get(key), str):
                values[key] = (values[key],) if values[key] else ()
        for key in ("mixture", "caption_levels", "caption_query", "video_features"):
            if key in values:
                values[key] = values[key] or ()
        values["path"] = values.get("path") or ""
        values["text_features"] = values.get("text_features") or None
        for key, value in values.items():
            _check_type(key, value)
            if isinstance(value, list | tuple):
                values[key] = _tuple(value)
        for key in ("tasks", "caption_weights"):
            if key in values:
                values[key] = {name: float(weight) for name, weight in values[key].items()}
        for key in ("masks", "images"):
            if key in values:
                values[key] = _plain(values[key])
        made = DataConfig(**values)
        made._check()
        return made

    @property
    def sources(self) -> tuple[tuple[str, float], ...]:
        """((path, weight), ...) of what is drawn from; weights sum to 1."""
        pairs = self.mixture or ((self.path, 1.0),)
        total = sum(weight for _, weight in pairs)
        return tuple((path, weight / total) for path, weight in pairs)

    @property
    def reading_threads(self) -> int:
        """Threads that read ahead in a process: `threads`, or what 0 stands for."""
        if self.threads:
            return self.threads
        return min(os.cpu_count() or 1, _MOST_THREADS) if self.cache == "none" else 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelets, rows and columns of tokens in a clip, as the encoder counts them."""
        rows = self.size // self.patch
        return max(1, self.frames // self.tubelet), rows, rows

    def check_one_view(self, why: str) -> None:
        """Checks that each clip is seen in one way alone.

        Args:
            why: What needs that, for the message.

        Raises:
            UserError: names the key that draws something at random.
        """
        fixed = {
            "sampling": ("uniform",),
            "crop": ("none",),
            "flip": (False,),
            "frame_control": ("none", "blank"),
        }
        for key, allowed in fixed.items():
            value = getattr(self, key)
            if value not in allowed:
                raise UserError(
                    f"data.{key} is {value!r}, which shows a clip otherwise each time, but {why}; "
                    f"set it to {allowed[0]!r}"
                )

    def _check(self) -> None:
        def demand(holds: bool, key: str, mend: str) -> None:
            if not holds:
                raise UserError(f"data.{key} is {getattr(self, key)!r}; {mend}")

        for key, choices in CHOICES.items():
            demand(getattr(self, key) in choices, key, f"it must be one of {choices}")
        for key in _POSITIVE:
            demand(getattr(self, key) >= 1, key, "it must be at least 1")
        for key in _NOT_NEGATIVE:
            demand(getattr(self, key) >= 0, key, "it must be at least 0")
        demand(
            "video" in self.streams
            and set(self.streams) <= set(STREAMS)
            and len(set(self.streams)) == len(self.streams),
            "streams",
            f"it must have 'video' and may have others of {STREAMS}, each once",
        )
        if "masks" in self.streams:
            cuts = self.patch > 0 and self.size % self.patch == 0
            demand(cuts, "patch", f"masks need one that divides data.size={self.size}")
            cuts = self.frames == 1 or self.frames % self.tubelet == 0
            demand(cuts, "tubelet", f"it must divide data.frames={self.frames}")
            demand(bool(self.masks), "masks", "data.streams has 'masks'; name a sampler")
        demand(bool(self.path) != bool(self.mixture), "path", "set either it or data.mixture")
        weights = [weight for _, weight in self.mixture]
        demand(all(weight > 0 for weight in weights), "mixture", "every weight must be above 0")
        demand(self.fps is None or self.fps > 0, "fps", "it must be above 0, or None")
        demand(self.timeout > 0, "timeout", "it must be above 0")
        demand(self.pixels == "rgb" or self.size % 2 == 0, "size", "yuv420 needs an even one")
        low, high = self.crop_scale
        demand(0 < low <= high <= 1, "crop_scale", "it must be (low, high) in (0, 1]")
        low, high = self.crop_ratio
        demand(0 < low <= high, "crop_ratio", "it must be (low, high) above 0")
        tasks = dict(self.tasks)
        demand(
            set(tasks) <= {"caption", "question"}
            and all(weight >= 0 for weight in tasks.values())
            and sum(tasks.values()) > 0,
            "tasks",
            "it must give weights of at least 0, one of them above, to 'caption' and 'question'",
        )
        demand(
            all(weight > 0 for weight in self.caption_weights.values()),
            "caption_weights",
            "every weight must be above 0; data.caption_levels leaves levels out",
        )
        demand(
            self.cache == "none" or self.workers == 0,
            "workers",
            "with data.cache the frames lie ready, so it must be 0",
        )
        if self.video_features:
            one_each = len(self.video_features) == len(self.sources)
            demand(one_each, "video_features", f"{len(self.sources)} datasets need one each")
            demand(not self.images, "video_features", "with data.images, leave it empty")
            self.check_one_view("data.video_features has features of one view of it")
        demand(0 <= self.max_bad_fraction < 1, "max_bad_fraction", "it must be in [0, 1)")


def _integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _sequence(value: Any, holds: Callable[[Any], bool], length: int | None = None) -> bool:
    if not isinstance(value, list | tuple) or length not in (None, len(value)):
        return False
    return all(holds(item) for item in value)


def _pair(value: Any) -> bool:
    return _sequence(value, lambda _: True, 2) and isinstance(value[0], str) and _number(value[1])


def _weights(value: Any) -> bool:
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
        return False
    return all(isinstance(key, str) and _number(weight) for key, weight in value.items())


# What the value of a field must be, by the annotation of the field.
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda v: isinstance(v, str), "a string"),
    "str | None": (lambda v: v is None or isinstance(v, str), "a string or None"),
    "bool": (lambda v: isinstance(v, bool), "True or False"),
    "int": (_integer, "an integer"),
    "float": (_number, "a number"),
    "float | None": (lambda v: v is None or _number(v), "a number or None"),
    "tuple[float, float]": (lambda v: _sequence(v, _number, 2), "two numbers"),
    "tuple[str, ...]": (
        lambda v: _sequence(v, lambda item: isinstance(item, str)),
        "a string or a tuple of strings",
    ),
    "tuple[tuple[str, float], ...]": (
        lambda v: _sequence(v, _pair),
        "a tuple of (path, weight) pairs",
    ),
    "Mapping[str, Any]": (
        lambda v: isinstance(v, Mapping | ml_collections.ConfigDict),
        "a section, such as {'sampler': 'multiblock'}",
    ),
    "Mapping[str, float]": (_weights, "weights by name, such as {'caption': 1.0}"),
}
_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(DataConfig)}


def _check_type(key: str, value: Any) -> None:
    """Raise UserError unless `value` is of the type of the field `key`."""
    holds, wanted = _TYPES[_FIELDS[key]]
    if not holds(value):
        raise UserError(f"data.{key} is {value!r}; it must be {wanted}")


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Sections as dicts and lists as tuples, all the way down."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {key: _plain(item) for key, item in value.items()}
    return _tuple(value)


def default_data_config() -> ml_collections.ConfigDict:
    """The defaults as a ConfigDict that command-line flags can override key by key."""
    values = dataclasses.asdict(DataConfig())
    values["fps"] = config_dict.placeholder(float)
    values["text_features"] = config_dict.placeholder(str)
    return ml_collections.ConfigDict(values)
