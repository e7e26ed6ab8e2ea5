"""What a chip can do, as its maker publishes it; the one table of it.

Rooflines (`jepa.training.roofline`) and utilisation (`jepa.training.flops`) are relative to these
numbers, so that two of them can be compared. They are what the data sheets say, reached or not:
dense bfloat16 with float32 sums, no sparsity.

Sources: Google's pages on TPU v2 to v6e (docs.cloud.google.com/tpu/docs/v5e and the like), NVIDIA's
data sheets of each card.
"""

from __future__ import annotations

import dataclasses
import math

from jepa.errors import UserError

GB, GIB = 1e9, 2**30

# Of a GPU's memory, what JAX takes at its start and no more later, as the launch files tell it
# (XLA_CLIENT_MEM_FRACTION; it would be 0.75). The rest is for what lies outside: CUDA's context,
# NCCL's buffers, libraries.
GPU_SHARE = 0.92


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX shows it.

    Attributes:
      kind: matched as a part of `device_kind`, whatever the case.
      flops: FLOP/s in dense bfloat16 (float16 where there is none).
      memory: bytes of HBM that a program can have. Of TPUs that is what the compiler lets it have,
        such as 15.75 of v5e's 16 GiB; of GPUs `GPU_SHARE` of the card.
      bandwidth: bytes/s of HBM.
      link: bytes/s that a chip can send over all its links together (half of a bandwidth that is
        published as bidirectional): ICI of TPUs, NVLink of GPUs.
      network: bytes/s that a chip can send to a chip of another node; None where links go on.
      node: chips of a node, where links end there.
    """

    kind: str
    flops: float
    memory: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    network: float | None = None
    node: int | None = None


CHIPS = (
    Chip("TPU v3", 61.5e12),  # of one of the two cores, which JAX shows as a device
    Chip("TPU v4", 275e12),
    Chip("TPU v5 lite", 197e12, 15.75 * GIB, 800 * GB, 200 * GB),
    Chip("TPU v5e", 197e12, 15.75 * GIB, 800 * GB, 200 * GB),
    Chip("TPU v5p", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB),
    Chip("TPU v5", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB),
    Chip("TPU v6 lite", 918e12, 31.25 * GIB, 1600 * GB, 400 * GB),
    Chip("TPU v6e", 918e12, 31.25 * GIB, 1600 * GB, 400 * GB),
    Chip("V100", 125e12),
    Chip("T4", 65e12),
    Chip("L4", 121e12),
    Chip("L40S", 362e12),
    Chip("A10G", 70e12),
    Chip("A100", 312e12),
    Chip("H100 PCIe", 756e12),
    # The SXM card, in nodes of 8 with a 400 Gb/s adapter each.
    Chip("H100", 989e12, GPU_SHARE * 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 8),
    Chip("H200", 989e12, GPU_SHARE * 141 * GB, 4800 * GB, 450 * GB, 50 * GB, 8),
    Chip("GH200", 989e12),
    Chip("B200", 2250e12),
)
# Names of topologies, before the colon.
TPUS = {"v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e"}
GPUS = {"h100": "H100", "h200": "H200"}


def of_kind(device_kind: str) -> Chip | None:
    """Returns the chip that JAX calls so, or None where it is not in the table."""
    # The longest first, so that "TPU v5 lite" is not taken for "TPU v5".
    for chip in sorted(CHIPS, key=lambda chip: len(chip.kind), reverse=True):
        if chip.kind.lower() in device_kind.lower():
            return chip
    return None


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of a kind, as `v5p:4x4x8` or `h100:64` names them.

    Attributes:
      name: as given.
      chip: what each one can do.
      sizes: chips along each dimension of the torus; of GPUs their number.
      tpu: whether they are TPUs, for which programs are compiled; for GPUs they are counted.
    """

    name: str
    chip: Chip
    sizes: tuple[int, ...]
    tpu: bool

    @property
    def chips(self) -> int:
        """The number of chips (not of cores, which product names such as v5p-256 count)."""
        return math.prod(self.sizes)


def topology(name: str) -> Topology:
    """Reads the name of a topology.

    Raises:
      UserError: it is no such name.
    """
    family, _, shape = name.partition(":")
    known = {**TPUS, **GPUS}
    sizes = shape.split("x")
    if family not in known or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UserError(
            f"--topology={name!r} names no chips; write one of {', '.join(known)}, a colon and "
            "the chips along each side, such as v5e:16x16, v5p:4x4x8 or h100:64"
        )
    if family in GPUS and len(sizes) > 1:
        raise UserError(f"--topology={name!r}: give the number of GPUs, such as {family}:64")
    chip = of_kind(known[family])
    assert chip is not None
    return Topology(name, chip, tuple(map(int, sizes)), family in TPUS)
