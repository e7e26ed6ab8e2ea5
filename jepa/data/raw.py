"""Pictures that lie in memory as one array: batches are gathered from it, without a codec.

B rows, R of them asked for, T frames, S size, H W pixels of the source.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jepa.data import pictures
from jepa.data.clips import Clips, View
from jepa.data.schema import Record
from jepa.data.transforms import Planes
from jepa.errors import UserError


class RawClips(Clips):
    """Grey pictures `split.pixels` uint8 [n, H, W] as RGB clips that repeat them T times.

    Records are made only where the batch has texts, so a batch costs no Python for each sample.
    """

    def __init__(self, split: Any, view: View):
        """Bring the pictures to their size, unless they are cropped for each sample.

        Raises:
            UserError: the config asks for 4:2:0, which nothing here is in.
        """
        super().__init__(split, view)
        config = view.config
        if config.pixels != "rgb":
            raise UserError(
                f"data.pixels is {config.pixels!r}, but the pictures of {split.name!r} are raw "
                "pixels; set it to 'rgb'"
            )
        self._pictures = split.pixels
        if not view.crops:
            self._pictures = pictures.centre(split.pixels, config.size)

    def __getstate__(self) -> dict[str, Any]:
        return {"split": self.split, "view": self.view}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def load(
        self, numbers: np.ndarray, positions: np.ndarray, out: Planes, rows: np.ndarray
    ) -> tuple[list[Record | None], dict[int, str]]:
        """See `Clips.load`; without texts there are no records."""
        config = self.view.config
        records: list[Record | None] = [None] * len(numbers)
        if "text" in config.streams:
            records = [self.split.record(number, video=False) for number in numbers.tolist()]
        if config.frame_control == "blank":
            return records, {}
        made = self._pictures[numbers]
        if self.view.crops:
            height, width = made.shape[1:]
            made = pictures.crop_resize(
                made, self.view.boxes(positions, width / height), config.size
            )
        mirrored = self.view.mirrored(positions)
        if mirrored.any():
            made[mirrored] = made[mirrored, :, ::-1]
        target = out["rgb"]
        # A slice is written in place; chosen rows would be collected first.
        target[slice(None) if len(rows) == len(target) else rows] = made[:, None, :, :, None]
        return records, {}
