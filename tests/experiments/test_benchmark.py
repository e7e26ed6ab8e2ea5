"""The benchmark runs, says what it measured, and refuses what it cannot compare."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from loading_helpers import record, write  # noqa: E402

from experiments import benchmark  # noqa: E402
from jepa.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i, size=32) for i in range(8)]
    return write(tmp_path_factory.mktemp("data") / "set", {"train": records})


def run(data, *more):
    sizes = ["--clips=16", "--rounds=2", "--batch=4", "--frames=4", "--size=32"]
    benchmark.main(["--suite=loader", f"--data={data}", *sizes, *more])


def test_the_loader_suite_compares_with_bare_decoding(data, tmp_path, capsys):
    run(data, f"--out={tmp_path / 'report.json'}")
    report = json.loads((tmp_path / "report.json").read_text())
    found = {item["name"]: item for item in report["measurements"]}
    ratio = found["loader, rgb / bare PyAV, rgb"]
    assert ratio["value"] > 0 and ratio["unit"] == "x"
    assert found["bare PyAV, rgb"]["value"] > 0
    assert report["machine"]["cores"] and report["date"] and report["versions"]["av"]
    assert "loader, yuv420, cached" in capsys.readouterr().out


def test_mistakes_are_named(data):
    for arguments, named in (
        (["--size=64"], "size"),
        (["--rounds=0"], "rounds"),
        (["--out=/nowhere/at/all.json"], "out"),
    ):
        with pytest.raises(UserError, match=named):
            run(data, *arguments)
    with pytest.raises(UserError, match="suite"):
        benchmark.main(["--suite=nothing"])
