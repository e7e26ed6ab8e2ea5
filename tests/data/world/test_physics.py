"""Simulated bodies follow the closed forms of mechanics."""

import math

import numpy as np
import pytest

from jepa.data.world.physics import FPS, FRAMES, Body, outline, reach, simulate

CLOCK = np.arange(FRAMES) / FPS


def test_free_fall_and_parabola():
    motion = simulate([Body("star", 6.0, (10, 50), (12, -40))], gravity=60)
    assert motion.xy[0, :, 0] == pytest.approx(10 + 12 * CLOCK, abs=1e-9)
    # Semi-implicit Euler with steps of 1/96 s is off by at most g t / 192.
    assert motion.xy[0, :, 1] == pytest.approx(50 - 40 * CLOCK + 30 * CLOCK**2, abs=60 * 2 / 190)


def test_friction_stops_a_slider_after_its_braking_distance():
    speed, friction, gravity = 50.0, 0.14, 300.0
    body = Body("square", 7.0, (5, 50 - 0.8 * 7), (speed, 0), friction=friction)
    motion = simulate([body], gravity=gravity, floor=50, floor_elasticity=0.0)
    distance = speed**2 / (2 * friction * gravity)
    assert motion.xy[0, -1, 0] - 5 == pytest.approx(distance, rel=0.06)
    assert abs(motion.velocity[0, -1, 0]) < 1e-6


def test_a_bounce_keeps_the_elastic_share_of_the_speed():
    motion = simulate([Body("circle", 6.0, (32, 14), elasticity=0.8)], gravity=150, floor=50)
    time, *bodies = motion.contacts[0]
    assert bodies.count(-1) == 1
    assert time == pytest.approx(math.sqrt(2 * 30 / 150), abs=2 / 64)
    # The height of the next apex is that of the drop times the elasticity squared.
    rise = 44 - motion.xy[0, int(np.ceil(time * FPS)) :, 1].min()
    assert rise == pytest.approx(30 * 0.8**2, rel=0.08)


def test_equal_masses_swap_velocities():
    bodies = [
        Body("circle", 6.0, (12, 32), (30, 0), elasticity=1.0),
        Body("ring", 6.0, (36, 32), elasticity=1.0),
    ]
    motion = simulate(bodies)
    assert motion.first_contact(0, 1) == pytest.approx(12 / 30, abs=2 / 64)
    assert motion.velocity[:, -1, 0] == pytest.approx([0, 30], abs=0.5)
    assert motion.velocity[:, :, 0].sum(axis=0) == pytest.approx(np.full(FRAMES, 30.0))


def test_steering_reaches_the_commanded_velocity_and_walls_hold():
    motion = simulate([Body("circle", 6.0, (32, 32), mass=3.0)], steer=lambda t: (10.0, -5.0))
    assert motion.velocity[0, -1] == pytest.approx([10, -5], abs=0.01)
    motion = simulate([Body("circle", 6.0, (32, 32))], walls=True, steer=lambda t: (90.0, 0.0))
    assert motion.xy[0, -1, 0] == pytest.approx(58, abs=0.5)


@pytest.mark.parametrize("shape", ["square", "cross", "triangle", "star"])
def test_outlines_lie_within_the_radius(shape):
    corners = np.array(outline(shape, 10.0))
    assert np.hypot(*corners.T).max() <= 11.4
    assert reach(shape, 10.0) == pytest.approx(corners[:, 1].max())
    assert reach(shape, 10.0, (-1, 0)) == pytest.approx(-corners[:, 0].min())
