"""Clips and images side by side in a batch, as V-JEPA 2.1 trains on (arXiv 2603.14482).

Both come from loaders of their own; the images' batch is the stream `images` of the clips'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jepa.data.config import DataConfig
from jepa.errors import UserError

STREAM = "images"
_BATCH = "batch"
# What the images' stream has of the clips' unless `data.images` says otherwise.
_SHARED = (
    "streams",
    "patch",
    "tubelet",
    "size",
    "crop",
    "crop_scale",
    "crop_ratio",
    "flip",
    "pixels",
    "max_bad_fraction",
    "workers",
    "threads",
)
_OWN = ("path", "mixture", "split", "masks", "cache", *_SHARED)


def images_config(config: DataConfig) -> tuple[DataConfig, int]:
    """The `data` section of the images, and how many a global batch has.

    Raises:
        UserError: a key that images cannot have, or no `batch`.
    """
    given = dict(config.images)
    rows = given.pop(_BATCH, None)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise UserError(
            f"data.images.batch is {rows!r}; give the number of images in a global batch"
        )
    for key in given:
        if key not in _OWN:
            raise UserError(
                f"the config key 'data.images.{key}' does not exist; known are "
                f"{', '.join(sorted((_BATCH, *_OWN)))}"
            )
    shared = {key: getattr(config, key) for key in _SHARED}
    try:
        return DataConfig.parse({**shared, **given, "frames": 1}), rows
    except UserError as error:
        raise UserError(f"of data.images: {error}") from error


class JointLoader:
    """A loader of clips whose batches hold those of a loader of images.

    Attributes:
        element_spec: of both.
        timeout: of the clips.
    """

    def __init__(self, clips: Any, images: Any):
        self._clips, self._images = clips, images
        self.element_spec = {**clips.element_spec, STREAM: images.element_spec}
        self.timeout: float = clips.timeout

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return {**next(self._clips), STREAM: next(self._images)}

    @property
    def vocabulary(self) -> dict[str, int | None]:
        """As `TrainLoader.vocabulary`, of the clips."""
        return self._clips.vocabulary

    @property
    def classes(self) -> tuple[str, ...]:
        """As `TrainLoader.classes`, of the clips."""
        return self._clips.classes

    @property
    def masks(self) -> Any:
        """As `TrainLoader.masks`, of the clips."""
        return self._clips.masks

    @property
    def unreadable(self) -> dict[str, str]:
        """As `TrainLoader.unreadable`, of both."""
        named = {f"{STREAM}:{key}": reason for key, reason in self._images.unreadable.items()}
        return {**self._clips.unreadable, **named}

    def record_keys(self) -> list[str]:
        """As `TrainLoader.record_keys`, of the clips and then of the images."""
        return [
            *self._clips.record_keys(),
            *(f"{STREAM}:{key}" for key in self._images.record_keys()),
        ]

    def state(self) -> dict[str, Any]:
        """JSON that `restore` goes on from."""
        return {**self._clips.state(), STREAM: self._images.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()`.

        Raises:
            UserError: it is no state of such a loader, or a dataset is not the one it came from.
        """
        if STREAM not in state:
            raise UserError(
                "this run began without data.images; take them out, or begin anew in another "
                "--workdir"
            )
        self._images.restore(state[STREAM])
        self._clips.restore({key: value for key, value in state.items() if key != STREAM})

    def close(self) -> None:
        """End threads and processes of both."""
        self._clips.close()
        self._images.close()

    def __enter__(self) -> JointLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
