"""Which scene stands at which index of which split.

A clip is a pure function of (seed, split, index). Indices come in blocks with a fixed layout of
lone clips and contrast groups; all members of a group replay the random stream of the group's first
index and differ in the variant alone.

    train, validation   14 lone clips, 4 that differ in direction, 2 that differ in the order of
                        events or in the direction of time, and again
    novel               the same, but the (first) subject is one of `words.HELD_OUT`
    hard                groups only: 4 directions, 2 orders, 2 directions of time
    surprise            pairs, one possible and one not

Splits share no scene, by construction: the first object's starting x, in units of 1/40 px, is moved
to the residue modulo 5 that is the split's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jepa.data.world import ensembles, scenes
from jepa.data.world.stage import Scene, Stage
from jepa.data.world.surprise import surprise

SPLITS = ("train", "validation", "novel", "hard", "surprise")
#: Splits that consist of groups only.
GROUPED = ("hard", "surprise")
LATTICE = 40  # places in a pixel

#: Kinds of scene outside groups, with their weights. With the groups of `LAYOUT` (20 % quadruples
#: of `move`, 4 % pairs of `order`, 6 % pairs of coming and going) that makes, in per cent of all
#: clips: move 46, order 6, collide 5, fall 5, throw 3, count 3, control 2, each outcome 5.
MIXTURE: tuple[tuple[Callable[[Stage], Scene], float], ...] = (
    (scenes.move, 0.26),
    (scenes.bounce, 0.05),
    (scenes.fall, 0.05),
    (scenes.slide, 0.05),
    (scenes.occlude, 0.05),
    (scenes.recolour, 0.05),
    (scenes.appear, 0.02),
    (scenes.vanish, 0.02),
    (scenes.throw, 0.03),
    (ensembles.collide, 0.05),
    (ensembles.order, 0.02),
    (ensembles.count, 0.03),
    (ensembles.control, 0.02),
)


@dataclass(frozen=True)
class Slot:
    """A place in a split: the first index of its group, the members and which of them this is."""

    first: int
    members: int
    variant: int | None
    form: str
    split: str

    @property
    def group(self) -> str | None:
        """A name for the group, unique in the split; None for a lone clip."""
        return f"{self.split}-{self.first:06d}" if self.members > 1 else None


#: (form, members) in order, by split; a block is their sum.
_MIXED = (("lone", 1),) * 14 + (("motion", 4), ("pair", 2))
LAYOUT: dict[str, tuple[tuple[str, int], ...]] = {
    "train": _MIXED,
    "validation": _MIXED,
    "novel": _MIXED,
    "hard": (("motion", 4), ("order", 2), ("time", 2)),
    "surprise": (("surprise", 2),),
}


def block_size(split: str) -> int:
    """Clips in one block of a split; a split that is a multiple of this ends on a whole group."""
    return sum(members for _, members in LAYOUT[split])


def slot(split: str, index: int) -> Slot:
    """The slot at an index."""
    block, place = divmod(index, block_size(split))
    first = block * block_size(split)
    for form, members in LAYOUT[split]:
        if place < members:
            return Slot(first, members, place if members > 1 else None, form, split)
        place, first = place - members, first + members
    raise AssertionError("a block holds every place below its size")


def stream(seed: int, split: str, first: int) -> np.random.Generator:
    """The random stream of a group or a lone clip."""
    sequence = np.random.SeedSequence([seed, SPLITS.index(split), first])
    return np.random.Generator(np.random.PCG64(sequence))


def compose(seed: int, split: str, index: int) -> tuple[Scene, Slot, np.random.Generator]:
    """The scene at an index, its slot, and the stream for what is said about it."""
    at = slot(split, index)
    rng = stream(seed, split, at.first)
    family = choose(at.form, rng)
    scene = family(Stage(rng, novel=split == "novel", variant=at.variant))
    settle(scene, split)
    return scene, at, rng


def choose(form: str, rng: np.random.Generator) -> Callable[[Stage], Scene]:
    """The kind of scene of a group's form."""
    share = rng.random()
    if form == "pair":
        form = "order" if share < 0.4 else "time"
    if form != "lone":
        return {
            "motion": scenes.move,
            "order": ensembles.order,
            "time": scenes.come_or_go,
            "surprise": surprise,
        }[form]
    weights = np.array([weight for _, weight in MIXTURE])
    edges = np.cumsum(weights / weights.sum())
    return MIXTURE[min(int(np.searchsorted(edges, share)), len(MIXTURE) - 1)][0]


def settle(scene: Scene, split: str) -> None:
    """Move the scene by less than 1/8 px, so that its first x falls on the split's own lattice."""
    x = scene.tracks[0].xy[0, 0] * LATTICE
    own = 5 * np.floor(x / 5) + SPLITS.index(split)
    for track in scene.tracks:
        track.xy[:, 0] += (own - x) / LATTICE
