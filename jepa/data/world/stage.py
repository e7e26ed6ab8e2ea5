"""What a scene is made of, and the draws that every kind of scene shares.

A `Stage` holds the random stream. Members of a contrast group replay the same stream and differ
only in `variant`, so the number and the order of draws must not depend on the variant.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jepa.data.world import words
from jepa.data.world.physics import FRAMES
from jepa.data.world.render import Backdrop, Box, Track


@dataclass
class Actor:
    """A coloured shape of a size: `radius` px, `rgb` with its jitter, `angle` rad."""

    colour: str
    shape: str
    size: str
    radius: float
    rgb: np.ndarray
    angle: float

    @property
    def full(self) -> str:
        """Such as "large red star"."""
        return f"{self.size} {self.colour} {self.shape}"

    @property
    def short(self) -> str:
        """Such as "red star"."""
        return f"{self.colour} {self.shape}"

    def track(self, xy: np.ndarray, alpha: np.ndarray | None = None) -> Track:
        """The actor on a path `xy` [T, 2] px (or standing at [2])."""
        xy = np.array(np.broadcast_to(np.asarray(xy, float), (FRAMES, 2)))
        return Track(
            self.colour,
            self.shape,
            self.size,
            self.radius,
            xy,
            np.full(FRAMES, self.angle),
            np.tile(self.rgb, (FRAMES, 1)),
            np.ones(FRAMES) if alpha is None else alpha,
        )


@dataclass
class Happening:
    """Something that happens at `time` s: `kind` (a verb) and the phrases of who takes part."""

    time: float
    kind: str
    subjects: tuple[str, ...]


@dataclass
class Scene:
    """A scene before it is drawn. `fields` fill the caption templates of `template`."""

    kind: str
    tracks: list[Track]
    backdrop: Backdrop
    shake: np.ndarray
    fields: dict[str, str]
    template: str
    boxes: list[Box] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    actions: np.ndarray | None = None
    states: np.ndarray | None = None


class Stage:
    """Random draws for one scene. `variant` None lets the scene choose its own."""

    def __init__(
        self, rng: np.random.Generator, *, novel: bool = False, variant: int | None = None
    ):
        self.rng = rng
        self.novel = novel
        self.given = variant

    def variant(self, count: int) -> int:
        """The group's variant, or a uniform draw. Draws either way, to keep streams aligned."""
        drawn = int(self.rng.integers(count))
        return drawn if self.given is None else self.given % count

    def uniform(self, low: float, high: float) -> float:
        """A uniform draw."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.rng.random() < probability)

    def pair(self, avoid: list[Actor]) -> tuple[str, str]:
        """A colour and a shape, each uniform and not in `avoid`; held out only in `novel`."""
        if self.novel and not avoid:
            held = sorted(words.HELD_OUT)
            return held[int(self.rng.integers(len(held)))]
        colours = [c for c in words.COLOURS if c not in {a.colour for a in avoid}]
        colour = colours[int(self.rng.integers(len(colours)))]
        shapes = [
            s
            for s in words.SHAPES
            if s not in {a.shape for a in avoid} and (colour, s) not in words.HELD_OUT
        ]
        return colour, shapes[int(self.rng.integers(len(shapes)))]

    def actor(self, *avoid: Actor, size: str | None = None, upright: bool = False) -> Actor:
        """Draw an actor unlike those in `avoid` in both colour and shape."""
        colour, shape = self.pair(list(avoid))
        drawn = list(words.SIZES)[int(self.rng.integers(len(words.SIZES)))]
        size = size or drawn
        radius = self.uniform(*words.SIZES[size])
        lean = self.uniform(-0.2, 0.2)
        return Actor(colour, shape, size, radius, self.tint(colour), 0.0 if upright else lean)

    def tint(self, colour: str) -> np.ndarray:
        """A colour with a little jitter in brightness and hue, float [3] in 0..255."""
        rgb = np.array(words.COLOURS[colour], float) * self.uniform(0.9, 1.0)
        return np.clip(rgb + self.rng.uniform(-8, 8, 3), 0, 255)

    def other_colour(self, actor: Actor) -> str:
        """Another colour, uniform among those that the actor's shape may have."""
        colours = [
            c for c in words.COLOURS if c != actor.colour and (c, actor.shape) not in words.HELD_OUT
        ]
        return colours[int(self.rng.integers(len(colours)))]

    def stone(self) -> np.ndarray:
        """The grey of a wall, float [3]; lighter than any background, duller than any object."""
        return self.rng.uniform(100, 130) + self.rng.uniform(-12, 12, 3)

    def place(self, radius: float) -> np.ndarray:
        """A position [2] px at which the whole shape is in the frame."""
        return self.rng.uniform(radius + 1, 63 - radius, 2)

    def backdrop(self, floor: float | None = None) -> Backdrop:
        """A background darker and duller than any object."""
        top, bottom = self._dull(), self._dull()
        tilt = self.uniform(0, np.pi / 2)
        cells = int(self.rng.integers(5, 24))
        texture = self.rng.standard_normal((cells, cells)).astype(np.float32)
        strength = self.uniform(0, 7)
        floor_rgb = self._dull() + 22
        return Backdrop(top, bottom, tilt, texture, strength, floor, floor_rgb)

    def _dull(self) -> np.ndarray:
        level = self.uniform(14, 88)
        return level + self.rng.uniform(-0.16, 0.16, 3) * level

    def shake(self) -> np.ndarray:
        """Camera offsets, int [T, 2]: still in half of the clips, else up to 1 px either way."""
        still = self.chance(0.5)
        steps = self.rng.integers(-1, 2, (FRAMES, 2)) * (self.rng.random((FRAMES, 1)) < 0.5)
        return np.zeros((FRAMES, 2), int) if still else steps
