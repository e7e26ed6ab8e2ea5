"""How long a step takes at the least, by published numbers, and what holds it up.

A step does arithmetic, moves bytes through its memory and sends bytes to other chips. Each takes
the time of its amount over what the chip can do at the most (`jepa.parallel.chips`). Arithmetic and
memory overlap within a chip; communication overlaps with them fully in one figure and not at all in
the other, between which a real step may lie. No step is as fast: kernels do not reach the peak,
small operations wait for each other, and a batch has to come from the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from jepa.parallel.chips import Chip

COMPUTE, MEMORY = "arithmetic", "HBM"


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does, of each chip, but `useful`.

    Attributes:
      useful: model FLOPs of all chips together, `Method.flops`.
      done: FLOPs, rematerialisation included.
      moved: bytes through HBM.
      sent: bytes to other chips, by the mesh axes along which they go.
    """

    useful: float
    done: float
    moved: float
    sent: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step.

    Attributes:
      compute: of its arithmetic.
      memory: of what goes through HBM; None where that is not known.
      sent: of what is sent, by mesh axes.
      overlapped, serial: of a step whose communication overlaps fully, and not at all.
      mfu_overlapped, mfu_serial: useful arithmetic over what the chips can do in that time.
      bound: what takes longest.
    """

    compute: float
    memory: float | None
    sent: Mapping[str, float]
    overlapped: float
    serial: float
    mfu_overlapped: float
    mfu_serial: float
    bound: str


def roofline(work: Work, chip: Chip, chips: int, rates: Mapping[str, float]) -> Roofline:
    """Returns the bounds of a step.

    Args:
      work: what it does.
      chip: what it runs on; its bandwidth must be known.
      chips: how many.
      rates: bytes/s that a chip can send along the axes of `work.sent`; see `rate`.
    """
    assert chip.bandwidth is not None
    compute = work.done / chip.flops
    memory = work.moved / chip.bandwidth
    sent = {axes: size / rates[axes] for axes, size in work.sent.items()}
    inside, across = max(compute, memory), sum(sent.values())
    overlapped, serial = max(inside, across), inside + across
    terms = {COMPUTE: compute, MEMORY: memory, **{f"sending over {a}": t for a, t in sent.items()}}
    bound = max(terms, key=lambda name: terms[name])
    if across > inside:
        bound = "sending" if len(sent) > 1 else f"sending over {next(iter(sent))}"
    ideal = work.useful / chips / chip.flops
    return Roofline(
        compute=compute,
        memory=memory,
        sent=sent,
        overlapped=overlapped,
        serial=serial,
        mfu_overlapped=ideal / overlapped,
        mfu_serial=ideal / serial,
        bound=bound,
    )


def rate(chip: Chip, mesh: Mesh, axes: str) -> float:
    """Returns the bytes/s that a TPU can send along mesh axes.

    Its links go along the dimensions of the torus, a pair along each. A group of chips that differ
    in one of two dimensions has half of them. Every dimension is taken for a ring, which is too
    good, by about two, for a group that spans a part of one (docs/pods.md).

    Args:
      chip: whose `link` is that of all of them.
      mesh: of devices with coordinates.
      axes: names joined by "+".
    """
    assert chip.link is not None
    coordinates = np.array([device.coords for device in mesh.devices.flat])
    places = coordinates.reshape(*mesh.devices.shape, -1)
    moving = [mesh.axis_names.index(axis) for axis in axes.split("+")]
    order = [i for i in range(places.ndim - 1) if i not in moving] + moving + [places.ndim - 1]
    size = int(np.prod([mesh.devices.shape[i] for i in moving]))
    groups = places.transpose(order).reshape(-1, size, places.shape[-1])
    used = (groups != groups[:, :1]).any(axis=(0, 1)).sum()
    there = (coordinates != coordinates[:1]).any(axis=0).sum()
    return chip.link * float(used) / float(there)
