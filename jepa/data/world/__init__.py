"""A small world of coloured shapes under two-dimensional physics, filmed and described.

`scene(seed, split, index)` is one clip; `write_world` writes a dataset of them.
"""

from jepa.data.world.generate import Clip, scene
from jepa.data.world.write import DEMO_CLIPS, write_world

__all__ = ["DEMO_CLIPS", "Clip", "scene", "write_world"]
