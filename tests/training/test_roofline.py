import types

import numpy as np
import pytest

from jepa.errors import UserError
from jepa.parallel import chips
from jepa.parallel.chips import Chip
from jepa.training.ahead import needed
from jepa.training.roofline import Work, rate, roofline

CHIP = Chip("toy", flops=100.0, memory=64.0, bandwidth=10.0, link=4.0)


def test_time_is_amount_over_rate():
    work = Work(useful=1200.0, done=400.0, moved=30.0, sent={"data": 2.0, "fsdp": 6.0})
    found = roofline(work, CHIP, 4, {"data": 2.0, "fsdp": 4.0})
    assert (found.compute, found.memory) == (4.0, 3.0)
    assert found.sent == {"data": 1.0, "fsdp": 1.5}
    assert (found.overlapped, found.serial) == (4.0, 6.5)
    # 1200 of 4 chips times 100 a second.
    assert found.mfu_overlapped == pytest.approx(3 / 4)
    assert found.mfu_serial == pytest.approx(3 / 6.5)
    assert found.bound == "arithmetic"


@pytest.mark.parametrize(
    "moved, sent, bound",
    [
        (50.0, {"fsdp": 6.0}, "HBM"),
        (50.0, {"fsdp": 24.0}, "sending over fsdp"),
        (50.0, {"fsdp": 16.0, "data": 8.0}, "sending"),
        (5.0, {}, "arithmetic"),
    ],
)
def test_what_bounds_it(moved, sent, bound):
    found = roofline(Work(400.0, 400.0, moved, sent), CHIP, 1, {"fsdp": 4.0, "data": 4.0})
    assert found.bound == bound
    assert found.overlapped == max(4.0, moved / 10, sum(sent.values()) / 4)


def torus(*sizes):
    places = list(np.ndindex(*sizes))
    return [types.SimpleNamespace(coords=place, id=i) for i, place in enumerate(places)]


def test_axes_have_the_links_of_the_dimensions_they_span():
    devices = np.array(torus(4, 8), object).reshape(1, 4, 8, 1)
    mesh = types.SimpleNamespace(devices=devices, axis_names=("data", "fsdp", "tensor", "context"))
    assert rate(CHIP, mesh, "fsdp") == rate(CHIP, mesh, "tensor") == 2.0
    assert rate(CHIP, mesh, "fsdp+tensor") == 4.0
    mesh.devices = np.array(torus(4, 8), object).reshape(16, 2, 1, 1)
    assert rate(CHIP, mesh, "data") == 4.0
    assert rate(CHIP, mesh, "fsdp") == 2.0


@pytest.mark.parametrize(
    "name, count, capacity",
    [("v5e:16x16", 256, 15.75), ("v5p:4x4x8", 128, 95.74), ("v6e:16x16", 256, 31.25)],
)
def test_topologies(name, count, capacity):
    found = chips.topology(name)
    assert (found.chips, found.tpu) == (count, True)
    assert found.chip.memory == capacity * 2**30


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:", "v5e:4xx4", "v5e:0x4", "h100:8x8", ""])
def test_a_topology_that_is_none(name):
    with pytest.raises(UserError, match="--topology="):
        chips.topology(name)


def test_a_gpu_has_the_share_of_its_memory_that_jax_is_let_take():
    assert chips.topology("h100:8").chip.memory == pytest.approx(73.6e9)


def test_every_topology_has_what_a_roofline_needs():
    for family in (*chips.TPUS, *chips.GPUS):
        chip = chips.topology(f"{family}:8").chip
        assert chip.memory and chip.bandwidth and chip.link


@pytest.mark.parametrize(
    "message, gib",
    [
        ("Ran out of memory in memory space hbm. Used 23.40G of 15.75G hbm. Exceeded", 23.4),
        ("required for HLO temporaries (480.00G) exceeds available HBM (15.75G).", 480),
        ("Used 512.5M of 15.75G hbm", 512.5 / 1024),
        ("something else", None),
    ],
)
def test_how_much_is_too_much(message, gib):
    found = needed(message)
    assert found == (None if gib is None else pytest.approx(gib * 2**30))
