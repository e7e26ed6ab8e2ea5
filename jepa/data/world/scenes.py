"""Scenes with one subject: it moves, falls, bounces, flies, slides, hides, comes, goes or changes.

Each function takes a `Stage` and returns a `Scene`. Time t of frame k is k / 8 s.
"""

from __future__ import annotations

import numpy as np

from jepa.data.world import words
from jepa.data.world.physics import FLOOR, FPS, FRAMES, Body, reach, simulate
from jepa.data.world.render import Box
from jepa.data.world.stage import Actor, Happening, Scene, Stage

DIRECTION_NAMES = tuple(words.DIRECTIONS)
SECONDS = (FRAMES - 1) / FPS


def named(actor: Actor, direction: str | None = None) -> dict[str, str]:
    """Template fields of a lone subject."""
    fields = {
        "s": words.with_article(actor.full),
        "n": words.with_article(actor.shape),
    }
    if direction:
        fields["d"] = words.DIRECTION_PHRASES[direction]
    return fields


def traits(actor: Actor, direction: str | None = None) -> dict[str, str]:
    """Labels of a lone subject."""
    labels = {"colour": actor.colour, "shape": actor.shape, "size": actor.size, "count": "one"}
    if direction:
        labels["direction"] = direction
    return labels


def lone(stage: Stage, kind: str, actor: Actor, tracks: list, **more) -> Scene:
    """A scene with one subject: fields, labels and the facts that questions ask for."""
    direction = more.pop("direction", None)
    scene = Scene(
        kind,
        tracks,
        more.pop("backdrop"),
        stage.shake(),
        named(actor, direction),
        kind,
        labels=traits(actor, direction),
        facts={"colour": actor.colour, "shape": actor.shape, "size": actor.size},
    )
    for name, value in more.items():
        setattr(scene, name, value)
    return scene


def ease(stage: Stage) -> np.ndarray:
    """How far along its path a mover is, [T] from 0 to 1: steady, speeding or slowing."""
    time = np.linspace(0, 1, FRAMES)
    bend = stage.uniform(-0.45, 0.45)
    return time + bend * time * (1 - time)


def move(stage: Stage) -> Scene:
    """One subject glides in one of four directions; sometimes another object stands by.

    The middle of the path is drawn first and the direction last, so that the four variants of a
    group look alike when time is half over and no single frame's place betrays the direction.
    """
    actor = stage.actor()
    length, drift = stage.uniform(20, 34), stage.uniform(-3, 3)
    margin = 0.85 * actor.radius + length / 2
    middle = stage.rng.uniform(margin, 64 - margin, 2)
    along = ease(stage) - 0.5
    backdrop = stage.backdrop()
    beside = stage.chance(0.05)
    other = stage.actor(actor, size="small")
    spot = _corner(stage, middle, length, actor.radius + other.radius)
    direction = DIRECTION_NAMES[stage.variant(4)]
    step = np.array(words.DIRECTIONS[direction], float)
    path = middle + along[:, None] * (length * step + drift * step[::-1])
    tracks = [actor.track(path)]
    scene = lone(stage, "move", actor, tracks, direction=direction, backdrop=backdrop)
    if beside and spot is not None:
        tracks.insert(0, other.track(spot))
        scene.template = "move_beside"
        scene.fields = named(actor, direction) | {
            "o": words.with_article(other.short),
            "m": words.with_article(other.shape),
        }
        scene.fields["s"] = words.with_article(actor.short)
        scene.labels = {"count": "two", "direction": direction}
    scene.happenings = [Happening(0.0, "moves", (scene.fields["s"],))]
    scene.facts["direction"] = direction
    return scene


def _corner(stage: Stage, middle: np.ndarray, length: float, apart: float) -> np.ndarray | None:
    """A place off all four paths through `middle`, or None."""
    corners = np.array([(9.0, 9.0), (9.0, 55.0), (55.0, 9.0), (55.0, 55.0)])
    corners = corners[stage.rng.permutation(4)] + stage.rng.uniform(-1, 1, (4, 2))
    for corner in corners:
        off = np.abs(corner - middle)
        over = np.maximum(off - length / 2 - 2, 0)
        on_row, on_column = np.hypot(over[0], off[1]), np.hypot(off[0], over[1])
        if min(on_row, on_column) > apart + 1:
            return corner
    return None


def _dropped(stage: Stage, kind: str, elasticity: float, gravity: float) -> Scene:
    actor = stage.actor(upright=True)
    floor = stage.uniform(54, 60)
    top = stage.uniform(0.7 * actor.radius, actor.radius + 3)
    drift = stage.uniform(-7, 7)
    x = stage.uniform(20, 44) - drift * SECONDS / 2
    body = Body(actor.shape, actor.radius, (x, top), (drift, 0), elasticity=elasticity)
    body.friction = 0.3 if kind == "fall" else 0.0
    motion = simulate([body], gravity=gravity, floor=floor)
    scene = lone(stage, kind, actor, [actor.track(motion.xy[0])], backdrop=stage.backdrop(floor))
    scene.facts["bounce"] = "yes" if kind == "bounce" else "no"
    hits = [t for t, *bodies in motion.contacts if FLOOR in bodies and t < SECONDS]
    verb, counted = ("bounces", hits) if kind == "bounce" else ("lands", hits[:1])
    scene.happenings = [Happening(t, verb, (scene.fields["s"],)) for t in counted]
    return scene


def fall(stage: Stage) -> Scene:
    """The subject falls to the floor and stays there."""
    scene = _dropped(stage, "fall", 0.0, stage.uniform(35, 110))
    scene.labels["direction"] = "down"
    return scene


def bounce(stage: Stage) -> Scene:
    """The subject falls and bounces off the floor."""
    scene = _dropped(stage, "bounce", stage.uniform(0.72, 0.88), stage.uniform(110, 240))
    scene.facts["outcome"] = "it bounces"
    return scene


def throw(stage: Stage) -> Scene:
    """The subject flies in an arc from one side to the other."""
    actor = stage.actor()
    across, height = stage.uniform(26, 38), stage.uniform(20, 32)
    gravity = 8 * height / SECONDS**2
    start = stage.uniform(64 - 0.8 * actor.radius - 8, 64 - 0.8 * actor.radius)
    centre = stage.uniform(28, 36)
    backdrop = stage.backdrop()
    direction = ("left", "right")[stage.variant(2)]
    sign = words.DIRECTIONS[direction][0]
    speed = (sign * across / SECONDS, -gravity * SECONDS / 2)
    body = Body(actor.shape, actor.radius, (centre - sign * across / 2, start), speed)
    motion = simulate([body], gravity=gravity)
    scene = lone(stage, "throw", actor, [actor.track(motion.xy[0])], backdrop=backdrop)
    scene.fields = named(actor, direction)
    scene.happenings = [Happening(0.0, "flies", (scene.fields["s"],))]
    return scene


def slide(stage: Stage) -> Scene:
    """The subject slides over the floor until friction has stopped it."""
    actor = stage.actor(upright=True)
    floor = stage.uniform(38, 58)
    distance, duration = stage.uniform(22, 34), stage.uniform(0.9, 1.4)
    gravity = 300.0
    speed = 2 * distance / duration
    centre = stage.uniform(29, 35)
    backdrop = stage.backdrop(floor)
    direction = ("left", "right")[stage.variant(2)]
    sign = words.DIRECTIONS[direction][0]
    y = floor - reach(actor.shape, actor.radius)
    body = Body(
        actor.shape,
        actor.radius,
        (centre - sign * distance / 2, y),
        (sign * speed, 0),
        friction=speed / duration / gravity,
    )
    motion = simulate([body], gravity=gravity, floor=floor, floor_elasticity=0.0)
    tracks = [actor.track(motion.xy[0])]
    scene = lone(stage, "slide", actor, tracks, direction=direction, backdrop=backdrop)
    scene.facts["outcome"] = "it stops"
    scene.happenings = [Happening(duration, "stops", (scene.fields["s"],))]
    return scene


def occlude(stage: Stage) -> Scene:
    """The subject passes behind a wall and comes out on the other side."""
    actor = stage.actor()
    width = 2 * actor.radius + stage.uniform(0, 3)
    far = width / 2 + actor.radius + 1 + stage.uniform(0, 3)
    far = min(far, 31 - 0.55 * actor.radius)
    lane = stage.uniform(actor.radius + 2, 62 - actor.radius)
    backdrop = stage.backdrop()
    red, green, blue = stage.stone()
    along = ease(stage) * 2 - 1
    direction = DIRECTION_NAMES[stage.variant(4)]
    step = np.array(words.DIRECTIONS[direction], float)
    across = np.abs(step[::-1])
    path = 32 * np.abs(step) + lane * across + along[:, None] * step * far
    low, high = 32 - width / 2, 32 + width / 2
    rect = (low, 0, high, 64) if step[0] else (0, low, 64, high)
    tracks = [actor.track(path)]
    scene = lone(stage, "occlude", actor, tracks, direction=direction, backdrop=backdrop)
    scene.boxes = [Box(rect, (red, green, blue))]
    gap = np.abs(path @ np.abs(step) - 32)
    hidden = np.flatnonzero(gap <= max(width / 2 - actor.radius, gap.min())) / FPS
    who = (scene.fields["s"],)
    scene.happenings = [Happening(float(hidden[0]), "hides", who)]
    scene.happenings.append(Happening(float(hidden[-1]), "comes back", who))
    scene.facts |= {"direction": direction, "outcome": "it hides and comes back"}
    return scene


def _switch(stage: Stage) -> tuple[np.ndarray, float]:
    """A fade within two frames, [T] from 0 to 1, near the middle of the clip; its time in s."""
    middle = stage.uniform(4.5, 10.5)
    fade = np.clip((np.arange(FRAMES) - middle) / 1.5 + 0.5, 0, 1)
    return fade, middle / FPS


def come_or_go(stage: Stage, kind: str | None = None) -> Scene:
    """The subject appears, or vanishes: the two variants are each other played backwards."""
    actor = stage.actor()
    spot = stage.place(actor.radius)
    fade, time = _switch(stage)
    backdrop, shake = stage.backdrop(), stage.shake()
    names = ("appear", "vanish")
    kind = kind or names[stage.variant(2)]
    back = kind == "vanish"
    tracks = [actor.track(spot, fade[::-1] if back else fade)]
    scene = lone(stage, kind, actor, tracks, backdrop=backdrop)
    scene.shake = shake[::-1] if back else shake
    scene.facts["outcome"] = f"it {kind}s" if not back else "it vanishes"
    when = SECONDS - time if back else time
    scene.happenings = [Happening(when, f"{kind}es" if back else "appears", (scene.fields["s"],))]
    return scene


def appear(stage: Stage) -> Scene:
    """The subject comes out of nothing."""
    return come_or_go(stage, "appear")


def vanish(stage: Stage) -> Scene:
    """The subject goes."""
    return come_or_go(stage, "vanish")


def recolour(stage: Stage) -> Scene:
    """The subject changes colour once."""
    actor = stage.actor()
    colour = stage.other_colour(actor)
    tint = stage.tint(colour)
    spot, drift = stage.place(actor.radius + 2), stage.rng.uniform(-4, 4, 2)
    fade, time = _switch(stage)
    path = spot + np.linspace(-0.5, 0.5, FRAMES)[:, None] * drift
    track = actor.track(path)
    track.rgb = actor.rgb + fade[:, None] * (tint - actor.rgb)
    scene = lone(stage, "recolour", actor, [track], backdrop=stage.backdrop())
    scene.fields |= {
        "z": words.with_article(f"{actor.size} {actor.shape}"),
        "old": actor.colour,
        "new": colour,
    }
    del scene.labels["colour"], scene.facts["colour"]
    scene.facts |= {"outcome": "it changes colour", "change": colour}
    scene.happenings = [Happening(time, "changes colour", (scene.fields["s"],))]
    return scene
