"""Violations of expectation: a possible and an impossible course of the same scene.

The two variants of a scene share every frame up to the moment where the impossible one breaks a
law: an object passes through a wall, never comes out from behind one, comes out in another colour,
or is suddenly elsewhere. Nothing here is used for training.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jepa.data.world import words
from jepa.data.world.physics import FPS, FRAMES, Body, reach, simulate
from jepa.data.world.render import Box, Track
from jepa.data.world.scenes import lone
from jepa.data.world.stage import Actor, Happening, Scene, Stage

DIRECTION_NAMES = tuple(words.DIRECTIONS)


def _scene(
    stage: Stage,
    name: str,
    possible: bool,
    actor: Actor,
    track: Track,
    boxes: list[Box],
    time: float,
) -> Scene:
    """A scene of violation `name`, which shows from `time` s on where it is not possible."""
    scene = lone(stage, "surprise", actor, [track], backdrop=stage.backdrop(), boxes=boxes)
    verdict = "yes" if possible else "no"
    scene.template = f"{name}_{'possible' if possible else 'impossible'}"
    scene.labels |= {"possible": verdict, "violation": name}
    scene.facts["possible"] = verdict
    if not possible:
        scene.happenings = [Happening(time, f"impossible: {name}", (scene.fields["s"],))]
    return scene


def _along(direction: str, place: np.ndarray, lane: float) -> np.ndarray:
    """A path [T, 2] whose coordinate along `direction` is `place` px from the frame's middle."""
    step = np.array(words.DIRECTIONS[direction], float)
    return 32 * np.abs(step) + lane * np.abs(step[::-1]) + place[:, None] * step


def _bar(direction: str, middle: float, width: float, rgb: np.ndarray, front: bool) -> Box:
    """A wall across the way of `direction`, `middle` px beyond the frame's middle."""
    x, y = words.DIRECTIONS[direction]
    centre = 32 + (x + y) * middle
    low, high = centre - width / 2, centre + width / 2
    rect = (low, -1.0, high, 65.0) if x else (-1.0, low, 65.0, high)
    return Box(rect, (float(rgb[0]), float(rgb[1]), float(rgb[2])), front)


def wall(stage: Stage, possible: bool) -> Scene:
    """The object bounces off a thin wall, or passes through it."""
    actor = stage.actor(size="small", upright=True)
    direction = DIRECTION_NAMES[int(stage.rng.integers(4))]
    lane, speed = stage.uniform(14, 50), stage.uniform(17, 20)
    rgb, start = stage.stone(), -31 + actor.radius + stage.uniform(0, 3)
    free = start + speed * np.arange(FRAMES) / FPS
    # Simulated as a drop onto a floor at 0, the wall's near face, then turned to the direction.
    front = reach(actor.shape, actor.radius, words.DIRECTIONS[direction])
    body = Body("circle", front, (0.0, start), (0.0, speed), elasticity=0.95)
    held = simulate([body], floor=0.0).xy[0, :, 1]
    split = int(np.argmax(np.abs(held - free) > 1e-6))
    path = _along(direction, held if possible else free, lane)
    box = _bar(direction, 2.5, 5.0, rgb, front=False)
    return _scene(stage, "wall", possible, actor, actor.track(path), [box], split / FPS)


def _behind(stage: Stage) -> tuple[Actor, np.ndarray, Box, np.ndarray]:
    """An object passing behind a pillar: its path, the pillar, when it is past the middle."""
    actor = stage.actor(size="small")
    direction = DIRECTION_NAMES[int(stage.rng.integers(4))]
    width = 2 * actor.radius + stage.uniform(5, 8)
    place = np.linspace(-1, 1, FRAMES) * stage.uniform(25, 27)
    path = _along(direction, place, stage.uniform(12, 52))
    return actor, path, _bar(direction, 0.0, width, stage.stone(), front=True), place > 0


def gone(stage: Stage, possible: bool) -> Scene:
    """The object comes out from behind a pillar, or never does."""
    actor, path, box, past = _behind(stage)
    alpha = np.ones(FRAMES) if possible else 1.0 - past
    time = int(np.argmax(past)) / FPS
    return _scene(stage, "gone", possible, actor, actor.track(path, alpha), [box], time)


def swap(stage: Stage, possible: bool) -> Scene:
    """The object keeps its colour behind a pillar, or comes out in another one."""
    actor, path, box, past = _behind(stage)
    colour = stage.other_colour(actor)
    tint = stage.tint(colour)
    track = actor.track(path)
    if not possible:
        track.rgb[past] = tint
    time = int(np.argmax(past)) / FPS
    scene = _scene(stage, "swap", possible, actor, track, [box], time)
    scene.fields |= {
        "z": words.with_article(f"{actor.size} {actor.shape}"),
        "old": actor.colour,
        "new": colour,
    }
    if not possible:
        del scene.labels["colour"], scene.facts["colour"]
    return scene


def teleport(stage: Stage, possible: bool) -> Scene:
    """The object glides on, or is suddenly in another lane."""
    actor = stage.actor(size="small")
    direction = DIRECTION_NAMES[int(stage.rng.integers(4))]
    place = np.linspace(-0.5, 0.5, FRAMES) * stage.uniform(26, 40)
    lane = stage.uniform(11, 22)
    jump = stage.uniform(20, 30)
    if stage.chance(0.5):
        lane, jump = 64 - lane, -jump
    when = int(stage.rng.integers(6, 11))
    path = _along(direction, place, lane)
    if not possible:
        path[when:] += jump * np.abs(np.array(words.DIRECTIONS[direction], float)[::-1])
    scene = _scene(stage, "teleport", possible, actor, actor.track(path), [], when / FPS)
    scene.fields["d"] = words.DIRECTION_PHRASES[direction]
    return scene


VIOLATIONS: tuple[Callable[[Stage, bool], Scene], ...] = (wall, gone, swap, teleport)


def surprise(stage: Stage) -> Scene:
    """One of the violations; variant 0 is possible, variant 1 is not."""
    violation = VIOLATIONS[int(stage.rng.integers(len(VIOLATIONS)))]
    return violation(stage, stage.variant(2) == 0)
