"""Rigid bodies in two dimensions, simulated by pymunk in pixels and seconds (y grows downwards).

Bodies do not turn: a rolling square would soon be taken for another shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pymunk

FRAMES = 16
FPS = 8
SUBSTEPS = 12  # of a frame: at 80 px/s a body moves 0.8 px a step, far less than any radius
FLOOR = -1  # the "body" that contacts with the floor and the walls name


@dataclass
class Body:
    """One body: `position` px, `velocity` px/s. Elasticities in contact multiply."""

    shape: str
    radius: float
    position: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    mass: float = 1.0
    elasticity: float = 0.0
    friction: float = 0.0


@dataclass
class Motion:
    """N bodies over T frames: `xy` px and `velocity` px/s, both [N, T, 2]; who touched when."""

    xy: np.ndarray
    velocity: np.ndarray
    contacts: list[tuple[float, int, int]] = field(default_factory=list)

    def first_contact(self, one: int, other: int) -> float | None:
        """Seconds until the two bodies first touch, or None."""
        wanted = {one, other}
        return next((t for t, a, b in self.contacts if {a, b} == wanted), None)


def outline(shape: str, radius: float) -> list[tuple[float, float]]:
    """Corners of the convex hull, px, for a shape that is not round."""
    if shape == "square":
        side = 0.8 * radius
        return [(-side, -side), (side, -side), (side, side), (-side, side)]
    if shape == "cross":
        arm = 0.34 * radius
        corners = [(arm, radius), (radius, arm)]
        return [(sx * x, sy * y) for x, y in corners for sx in (1, -1) for sy in (1, -1)]
    points = {"triangle": 3, "star": 5}[shape]
    turns = [2 * math.pi * k / points for k in range(points)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in turns]


def reach(shape: str, radius: float, way: tuple[int, int] = (0, 1)) -> float:
    """How far in px an upright shape extends from its centre in a direction, by default down."""
    if shape in ("circle", "ring"):
        return radius
    return max(x * way[0] + y * way[1] for x, y in outline(shape, radius))


def simulate(
    bodies: list[Body],
    *,
    gravity: float = 0.0,
    damping: float = 1.0,
    floor: float | None = None,
    floor_elasticity: float = 1.0,
    floor_friction: float = 1.0,
    walls: bool = False,
    steer: Callable[[int], tuple[float, float]] | None = None,
) -> Motion:
    """Run T frames. `gravity` px/s² downwards; `damping` the share of speed kept each second.

    `floor` is the floor's height in px; `walls` closes the frame on its four sides. `steer(t)` is
    the velocity in px/s that the first body is pulled towards during frame t.
    """
    space = pymunk.Space()
    space.gravity = (0, gravity)
    space.damping = damping
    space.collision_slop = 0.01
    space.collision_bias = 1e-18  # what is left of an overlap after 1 s: half after each 1/60 s
    segments = []
    if floor is not None:
        segments.append(((-500, floor + 5), (500, floor + 5)))
    if walls:
        corners = [(-5, -5), (69, -5), (69, 69), (-5, 69)]
        segments += [(corners[k], corners[(k + 1) % 4]) for k in range(4)]
    for start, end in segments:
        segment = pymunk.Segment(space.static_body, start, end, 5)
        segment.elasticity, segment.friction = floor_elasticity, floor_friction
        space.add(segment)
    made = [_add(space, body) for body in bodies]
    index = {body: k for k, body in enumerate(made)}
    motion = Motion(np.empty((len(bodies), FRAMES, 2)), np.empty((len(bodies), FRAMES, 2)))
    clock = [0.0]

    def touch(arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        one, other = (
            index.get(shape.body, FLOOR) if shape.body else FLOOR for shape in arbiter.shapes
        )
        motion.contacts.append((clock[0], one, other))

    space.on_collision(begin=touch)
    step = 1 / (FPS * SUBSTEPS)
    for t in range(FRAMES):
        for k, body in enumerate(made):
            motion.xy[k, t] = body.position
            motion.velocity[k, t] = body.velocity
        for _ in range(SUBSTEPS):
            if steer is not None:
                _pull(made[0], steer(t))
            clock[0] += step
            space.step(step)
    return motion


def _pull(body: pymunk.Body, velocity: tuple[float, float]) -> None:
    """Force towards a velocity, with a time constant of 1 / 16 s; walls still hold the body."""
    wanted = pymunk.Vec2d(*velocity) - body.velocity
    body.apply_force_at_world_point(wanted * (16 * body.mass), body.position)


def _add(space: pymunk.Space, spec: Body) -> pymunk.Body:
    body = pymunk.Body(spec.mass, math.inf)
    body.position, body.velocity = spec.position, spec.velocity
    shape: pymunk.Shape
    if spec.shape in ("circle", "ring"):
        shape = pymunk.Circle(body, spec.radius)
    else:
        shape = pymunk.Poly(body, outline(spec.shape, spec.radius))
    shape.elasticity, shape.friction = spec.elasticity, spec.friction
    space.add(body, shape)
    return body
