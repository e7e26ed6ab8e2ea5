"""The losses compiled for TPUs: what crosses chips, how large it is, and what it waits for."""

import math
import re

import pytest
from compiled_text import collective_sizes

from experiments.benchmarks import infonce, tpu
from jepa.parallel import topology

pytestmark = pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")

PIECE, WIDTH = 256, 128


@pytest.fixture(scope="module")
def mesh():
    return topology.tpu_mesh("v5e:4x4", {"data": 4, "fsdp": 4})


@pytest.fixture(scope="module")
def ring(mesh):
    return tpu.infonce_program(mesh, infonce.blockwise("ring"), PIECE * mesh.size, WIDTH)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_only_characteristic_functions_of_sigreg_cross_chips(mesh, implementation):
    slices, knots = 256, 17
    text = tpu.sigreg_program(mesh, implementation, 2048, WIDTH, slices, knots).as_text()
    (size,) = tpu.all_reduces(text)
    # Nothing can differ at the knot 0, so its sums may stay at home.
    assert 2 * slices * (knots - 1) <= size <= 2 * slices * knots
    assert sum(collective_sizes(text)) == size
    assert ("tpu_custom_call" in text) == (implementation == "pallas")


def test_the_ring_sends_pieces_and_holds_nothing_larger(mesh, ring):
    text = ring.as_text()
    sent = [size for line in text.splitlines() for size in _sent(line)]
    assert max(sent) == PIECE * WIDTH
    assert len([size for size in sent if size == max(sent)]) >= 4
    arrays = re.findall(r"\b(?:bf16|f32|s32|pred)\[([\d,]+)\]", text)
    assert max(math.prod(map(int, shape.split(","))) for shape in arrays) == PIECE * PIECE
    # Far less than a chip's share of the logits.
    memory = ring.memory_analysis()
    assert memory.temp_size_in_bytes < 4 * PIECE * PIECE * mesh.size / 4


def test_the_ring_works_while_it_sends(ring):
    bodies = re.split(r"\n(?=\S.*\{\n)", ring.as_text())
    loops = [b for b in bodies if "collective-permute" in b and not b.startswith("ENTRY")]
    assert len(loops) == 2  # forward and backward
    for body in loops:
        lines = body.splitlines()
        assert not any(" collective-permute(" in line for line in lines)
        starts = [i for i, line in enumerate(lines) if PIECE * WIDTH in _sent(line)]
        assert starts
        for start in starts:
            name = lines[start].split()[0]
            (done,) = (i for i, x in enumerate(lines) if f"collective-permute-done({name})" in x)
            # A fusion of this kind is built around a matrix product.
            assert any("kind=kOutput" in line for line in lines[start:done])


def _sent(line):
    """Sizes of what a line begins to send to a neighbour."""
    if "collective-permute-start(" not in line:
        return []
    return [math.prod(map(int, re.search(r"\w+\[([\d,]+)\]", line)[1].split(",")))]
