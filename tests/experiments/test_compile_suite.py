import pytest

from experiments import benchmark
from experiments.benchmarks import compiling
from jepa.errors import UserError
from jepa.parallel import topology


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--compile_chips=h100:8 v5e:2x4", "only programs for TPUs"),
        ("--compile_width=100", "a multiple of 64"),
        ("--compile_clips=0", "at least 1"),
        ("--compile_depths=0 2", "a block or more"),
    ],
)
def test_sizes_that_cannot_be(flag, message):
    name, _, values = flag.partition("=")
    with pytest.raises(UserError, match=message):
        benchmark.main(["--suite=compile", name, *values.split()])


@pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")
@pytest.mark.slow
def test_programs_are_compiled_in_turn():
    found = compiling.measure(
        depths=[1, 2], where=["v5e:2x2", "v5e:2x4"], width=64, clips=1, rounds=1
    )
    assert len(found) == 5
    assert all(item["value"] > 0 and item["bar"] == "" for item in found)
    assert [item["unit"] for item in found] == ["s", "s", "s", "", ""]
