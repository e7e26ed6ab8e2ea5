"""Scenes with several subjects: one hits another, events in order, things to count, steered bodies.

Subjects of one scene differ in colour and in shape, so that either names them.
"""

from __future__ import annotations

import numpy as np

from jepa.data.world import words
from jepa.data.world.physics import FPS, FRAMES, Body, Motion, simulate
from jepa.data.world.render import FRAME, Track
from jepa.data.world.scenes import DIRECTION_NAMES
from jepa.data.world.stage import Actor, Happening, Scene, Stage


def two(actor: Actor, other: Actor) -> dict[str, str]:
    """Template fields of two subjects."""
    return {
        "s": words.with_article(actor.short),
        "o": words.with_article(other.short),
        "n": words.with_article(actor.shape),
        "m": words.with_article(other.shape),
    }


def collide(stage: Stage) -> Scene:
    """The first subject runs into the second, which was at rest and moves off."""
    actor = stage.actor(upright=True)
    other = stage.actor(actor, upright=True, size=None if actor.size == "small" else "small")
    direction = DIRECTION_NAMES[stage.variant(4)]
    step = np.array(words.DIRECTIONS[direction], float)
    across = np.abs(step[::-1])
    lane = stage.uniform(20, 44)
    start = 32 * np.abs(step) + lane * across - step * (31 - 0.8 * actor.radius)
    rest = 32 * np.abs(step) + lane * across + step * stage.uniform(0, 5)
    gap = float(np.dot(rest - start, step)) - 0.7 * (actor.radius + other.radius)
    speed = max(gap, 6) / stage.uniform(0.4, 0.6)
    bodies = [
        Body(
            actor.shape,
            actor.radius,
            (start[0], start[1]),
            (step[0] * speed, step[1] * speed),
            elasticity=0.7,
        ),
        Body(other.shape, other.radius, (rest[0], rest[1]), elasticity=0.7),
    ]
    bodies[0].mass, bodies[1].mass = stage.uniform(1, 2), stage.uniform(1, 2)
    motion = simulate(bodies, damping=0.5, walls=True)
    time = motion.first_contact(0, 1)
    assert time is not None, "the first subject heads straight for the second"
    fields = two(actor, other) | {"d": words.DIRECTION_PHRASES[direction]}
    return Scene(
        "collide",
        [actor.track(motion.xy[0]), other.track(motion.xy[1])],
        stage.backdrop(),
        stage.shake(),
        fields,
        "collide",
        happenings=[
            Happening(0.0, "moves", (fields["s"],)),
            Happening(time, "hits", (fields["s"], fields["o"])),
        ],
        labels={"count": "two"},
        facts={
            "hitter": f"the {actor.shape}",
            "target": f"the {other.shape}",
            "direction": direction,
            "colour": actor.colour,
            "shape": actor.shape,
        },
    )


def _event(stage: Stage, verb: str, actor: Actor, spot: np.ndarray, time: float) -> Track:
    """The actor at `spot` with one event of a given kind around `time` s."""
    clock = np.arange(FRAMES) / FPS
    fade = np.clip((clock - time) * FPS / 1.5 + 0.5, 0, 1)
    if verb == "appears":
        return actor.track(spot, fade)
    if verb == "vanishes":
        return actor.track(spot, 1 - fade)
    aim = np.array([32.0, 32.0]) - spot
    axis = int(np.argmax(np.abs(aim)))
    step = np.zeros(2)
    step[axis] = np.sign(aim[axis]) or 1.0
    along = np.clip((clock - time) / 0.7 + 0.5, 0, 1)
    along = along * along * (3 - 2 * along)
    return actor.track(spot + along[:, None] * step * 15)


def order(stage: Stage) -> Scene:
    """Two events, one after the other. The variants swap the times of the two events."""
    actor = stage.actor(size="small")
    other = stage.actor(actor, size="small")
    verbs = (
        ("appears", "appears"),
        ("vanishes", "vanishes"),
        ("moves", "moves"),
        ("appears", "vanishes"),
    )[int(stage.rng.integers(4))]
    # Side by side or one above the other, in lanes of their own, so that they cannot meet.
    flat = stage.chance(0.5)
    near, far = stage.uniform(14, 19), stage.uniform(45, 50)
    first, second = np.array([near, stage.uniform(12, 26)]), np.array([far, stage.uniform(38, 52)])
    if verbs[0] == "moves":  # along the lane, not into the other's
        first[1], second[1] = stage.uniform(10, 14), stage.uniform(50, 54)
    if flat:
        first, second = first[::-1].copy(), second[::-1].copy()
    if stage.chance(0.5):
        first, second = second, first
    early = stage.uniform(0.4, 0.6)
    late = stage.uniform(1.25, 1.5)
    swap = stage.variant(2) == 1
    times = (late, early) if swap else (early, late)
    tracks = [
        _event(stage, verb, who, spot, time)
        for verb, who, spot, time in zip(verbs, (actor, other), (first, second), times, strict=True)
    ]
    fields = two(other, actor) if swap else two(actor, other)
    fields["v"], fields["w"] = verbs[::-1] if swap else verbs
    told = (actor, other)[int(stage.rng.integers(2))]
    lead, after = (other, actor) if swap else (actor, other)
    # One of the two is always above and to the left of the other.
    leading = second if swap else first
    place = "upper left" if leading.sum() < FRAME else "lower right"
    happenings = [
        Happening(early, fields["v"], (fields["s"],)),
        Happening(late, fields["w"], (fields["o"],)),
    ]
    return Scene(
        "order",
        tracks,
        stage.backdrop(),
        stage.shake(),
        fields,
        "order",
        happenings=happenings,
        labels={"count": "two", "first": place},
        facts={
            "first": f"the {lead.shape} {fields['v']}",
            "second": f"the {after.shape} {fields['w']}",
            "colour": told.colour,
            "shape": told.shape,
        },
    )


def count(stage: Stage) -> Scene:
    """Two to four small objects that stand still or drift slowly."""
    number = int(stage.rng.integers(2, 5))
    cells = stage.rng.permutation(4)[:number]
    still = stage.chance(0.5)
    actors: list[Actor] = []
    tracks = []
    for cell in cells:
        actor = stage.actor(*actors, size="small")
        middle = np.array([17 + 30 * (cell % 2), 17 + 30 * (cell // 2)])
        middle = middle + stage.rng.uniform(-4, 4, 2)
        drift = stage.rng.uniform(3, 5, 2) * stage.rng.choice([-1, 1], 2)
        path = middle + np.linspace(-0.5, 0.5, FRAMES)[:, None] * drift * (not still)
        actors.append(actor)
        tracks.append(actor.track(path))
    seen = sorted(actors, key=lambda a: list(words.COLOURS).index(a.colour))
    fields = {
        "count": words.COUNTS[number],
        "list": words.listing([words.with_article(a.short) for a in seen]),
        "v": "stay still" if still else "drift slowly",
    }
    scene = Scene(
        "count",
        tracks,
        stage.backdrop(),
        stage.shake(),
        fields,
        "count",
        labels={"count": fields["count"]},
        facts={"count": fields["count"]},
    )
    asked = actors[int(stage.rng.integers(number))]
    scene.facts |= {"colour": asked.colour, "shape": asked.shape}
    return scene


def _wander(stage: Stage, aim: np.ndarray, towards: bool) -> np.ndarray:
    """Smooth random velocities [T, 2] px/s, towards or away from what lies at `aim` px."""
    knots = stage.rng.normal(0, 22, (5, 2))
    knots[:3] += aim / np.hypot(*aim) * (22 if towards else -8)
    at = np.arange(FRAMES) / (FRAMES - 1) * 4
    return np.stack([np.interp(at, np.arange(5), knots[:, k]) for k in range(2)], axis=1)


def _steer(
    actor: Actor, start: np.ndarray, other: Actor, rest: np.ndarray, actions: np.ndarray
) -> Motion:
    bodies = [
        Body(actor.shape, actor.radius, (start[0], start[1]), mass=3.0),
        Body(other.shape, other.radius, (rest[0], rest[1])),
    ]
    return simulate(bodies, damping=0.2, walls=True, steer=lambda t: (actions[t, 0], actions[t, 1]))


def control(stage: Stage) -> Scene:
    """A body steered by smooth random velocities beside a free one, which it may push.

    `actions` float32 [T, 2] px/s is the velocity commanded during each frame; `states` float32
    [T, 8] is x, y, vx, vy of the steered body, then of the free one, at the start of each frame.
    """
    actor = stage.actor(size="small", upright=True)
    other = stage.actor(actor, size="small", upright=True)
    start = stage.rng.uniform(12, 52, 2)
    rest = stage.rng.uniform(16, 48, 2)
    apart = rest - start
    away = max(float(np.hypot(*apart)), 1e-3)
    rest = start + apart / away * max(away, actor.radius + other.radius + 2)
    rest = np.clip(rest, other.radius + 1, 63 - other.radius)
    if np.hypot(*(rest - start)) < actor.radius + other.radius + 1:
        rest = start + np.where(start < 32, 1, -1) * (actor.radius + other.radius)
    wanted = stage.chance(0.5)
    for _ in range(40):
        actions = _wander(stage, rest - start, wanted)
        motion = _steer(actor, start, other, rest, actions)
        time = motion.first_contact(0, 1)
        pushed = float(np.hypot(*(motion.xy[1, -1] - motion.xy[1, 0])))
        if (pushed > 6) == wanted and (time is None) != wanted:
            break
    fields = two(actor, other)
    template = "control" if time is None else "push"
    happenings = [Happening(0.0, "is steered", (fields["s"],))]
    facts = {"push": "no"}
    told = (actor, other)[int(stage.rng.integers(2))]
    if time is not None and pushed < 6:
        facts, template = {}, "control_touch"
    elif time is not None:
        facts = {"push": "yes"}
        happenings.append(Happening(time, "pushes", (fields["s"], fields["o"])))
    states = np.concatenate(
        [motion.xy[0], motion.velocity[0], motion.xy[1], motion.velocity[1]], axis=1
    )
    return Scene(
        "control",
        [other.track(motion.xy[1]), actor.track(motion.xy[0])],
        stage.backdrop(),
        stage.shake(),
        fields,
        template,
        happenings=happenings,
        labels={"count": "two"},
        facts=facts | {"colour": told.colour, "shape": told.shape},
        actions=actions.astype(np.float32),
        states=states.astype(np.float32),
    )
