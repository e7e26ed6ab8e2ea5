"""From a scene to a clip: drawn frames with everything that is said of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jepa.data.world import questions, words
from jepa.data.world.render import Track, render
from jepa.data.world.splits import compose
from jepa.data.world.stage import Happening


@dataclass
class Clip:
    """T = 16 frames at 8 per second, 64 x 64 px.

    `captions` are (id, text, level), `questions` (id, query, answer, kind, candidates). `tracks`
    are what the simulation did, in px; they are not stored.
    """

    key: str
    frames: np.ndarray
    captions: list[tuple[str, str, str]]
    questions: list[tuple[str, str, str, str, tuple[str, ...]]]
    events: list[Happening]
    labels: dict[str, str]
    group: str | None
    actions: np.ndarray | None
    states: np.ndarray | None
    tracks: list[Track]


def scene(seed: int, split: str, index: int, *, draw: bool = True) -> Clip:
    """The clip at an index of a split; without `draw` its frames are empty (for texts alone)."""
    made, at, rng = compose(seed, split, index)
    captions: list[tuple[str, str, str]] = []
    for level, template in words.CAPTIONS[made.template]:
        number = sum(other == level for _, _, other in captions)
        name = level if number == 0 else f"{level}-{number}"
        captions.append((name, template.format(**made.fields), level))
    asked = [
        (kind, query, answer, kind, candidates)
        for kind, query, answer, candidates in questions.ask(made, rng)
    ]
    if draw:
        frames = render(made.backdrop, made.tracks, made.boxes, made.shake)
    else:
        frames = np.empty((0, 64, 64, 3), np.uint8)
    return Clip(
        key=f"{split}-{index:06d}",
        frames=frames,
        captions=captions,
        questions=asked,
        events=made.happenings,
        labels={"kind": made.kind, **made.labels},
        group=at.group,
        actions=made.actions,
        states=made.states,
        tracks=made.tracks,
    )
