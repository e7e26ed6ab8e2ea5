"""The benchmark runs, says what it measured, and refuses what it cannot compare."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from loading_helpers import record, write  # noqa: E402

from experiments import benchmark  # noqa: E402
from experiments.benchmarks import child, gradient_cache, measurement, share  # noqa: E402
from experiments.benchmarks.measurement import Measurement  # noqa: E402
from jepa.errors import UserError  # noqa: E402
from jepa.models import flops  # noqa: E402
from jepa.parallel.topology import has_libtpu  # noqa: E402

TINY = [
    *("--rounds=2", "--infonce_batch=128", "--infonce_dim=8", "--infonce_rounds=2"),
    *("--sigreg_samples=256", "--sigreg_dim=16", "--sigreg_slices=256", "--sigreg_knots=5"),
    *("--tpu_dim=128", "--tpu_batches=1024,2048", "--tpu_naive_batches=2048"),
    *("--tpu_infonce_chips=v5e:4x4", "--share_model=nano", "--share_batch=2", "--share_size=32"),
    *("--cache_model=nano", "--cache_batch=32", "--cache_size=32", "--cache_parts=2,4"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i, size=32) for i in range(8)]
    return write(tmp_path_factory.mktemp("data") / "set", {"train": records})


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    # In the processes of the parts: half of the tests' time, and no test is about speed.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def run(data, *more):
    sizes = ["--clips=16", "--rounds=2", "--batch=4", "--frames=4", "--size=32", "--mask_size=32"]
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
    for sampler, frames in (("tubes, short and long", "16 frames"), ("multiblock", "1 frame")):
        share = found[f"masks, {sampler} / loader"]
        masks, clips = found[f"masks, {sampler}"], found[f"loader without masks, 32 px, {frames}"]
        assert share["unit"] == "%" and not share["bar"]  # which is for 256 pixels
        # Medians of two rounds: that of the ratios is not the ratio of them, but it is near.
        assert share["value"] == pytest.approx(100 * masks["value"] / clips["value"], rel=0.9)
        assert "32x32" in clips["note"] and "x 16 x 16 tokens" in masks["note"]


def test_clips_for_the_masks_are_made_where_there_are_none(data, capsys):
    run(data, "--mask_size=64", "--mask_clips=1", "--rounds=1")
    assert "h264, 64x64, 16 frames" in capsys.readouterr().out


def losses(tmp_path, *arguments):
    path = tmp_path / "report.json"
    benchmark.main(["--suite=losses", f"--out={path}", *TINY, *arguments])
    found = json.loads(path.read_text())["measurements"]
    return path, {item["name"]: item for item in found}


@pytest.mark.slow
def test_contrastive_losses_are_compared_with_the_full_matrix(tmp_path):
    _, found = losses(tmp_path, "--parts=infonce,gradient_cache")
    for transport in ("ring", "all_gather"):
        assert found[f"InfoNCE, {transport} and full matrix: relative difference"]["value"] < 1e-5
        assert found[f"InfoNCE, {transport} / full matrix: time"]["value"] > 0
        for dtype in ("float32", "bfloat16"):
            memory = found[f"InfoNCE, {transport}, {dtype}: temporary memory a device"]
            assert memory["value"] > 0 and memory["device"] == "8 CPU devices"
            assert memory["bar"] == ""  # of other sizes nothing was promised
    constant = found["gradient cache: temporary memory that is no activations"]["value"]
    activations = found["whole batch: activations"]["value"]
    whole = found["whole batch: temporary memory"]["value"]
    assert whole >= activations > constant > 0
    shares = []
    for count in (2, 4):
        name = f"gradient cache, {count} micro-batches"
        assert found[f"{name}: relative difference of the gradient"]["value"] < 1e-6
        everything = found[f"{name} / whole batch: temporary memory"]["value"]
        shares.append(found[f"{name} / whole batch: activations"]["value"])
        assert shares[-1] == pytest.approx((everything * whole - constant) / activations)
    assert 1 > shares[0] > shares[1] > 0


def test_constant_and_slope_of_memory_are_told_apart():
    assert gradient_cache._constant({4: 3 + 8 / 4, 8: 3 + 8 / 8, 16: 3 + 8 / 16}) == pytest.approx(
        3
    )


def test_every_other_round_goes_backwards():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = measurement.alternate(calls, 3)
    assert "".join(order) == "abccbaabc" and all(len(seconds[name]) == 3 for name in "abc")


@pytest.mark.slow
def test_sigreg_is_compared_with_torch_and_its_share_is_counted(tmp_path, capsys):
    path, found = losses(tmp_path, "--parts=share,sigreg")
    for what, bound in (("loss", 1e-5), ("gradient", 1e-5)):
        name = f"SIGReg, JAX and PyTorch: relative difference of the {what}"
        assert found[name]["value"] < bound
    for name in ("SIGReg, JAX: peak memory", "SIGReg, JAX / PyTorch: peak memory"):
        assert found[name]["value"] > 0 and "threads of PyTorch" in found[name]["device"]
    # PyTorch holds at the least its angles, cosines and sines at all knots.
    assert found["SIGReg, PyTorch: peak memory"]["value"] > 3 * 4 * 256 * 256 * 5 / 1e6
    assert found["SIGReg, PyTorch / JAX: time"]["value"] > 0
    network = share.encoder("nano", "bfloat16")
    projector = 128 * 2048 + 2048 * 2048 + 2048 * 512
    step = 3 * 2 * (flops.video_transformer(network, 1, 32, 32) + 2 * projector)
    ours = 2 * 2 * 2 * 512 * 256 + 2 * 256 * (2 * 33 + 17 * 5)
    assert found["SIGReg's share of a train step: FLOPs"]["value"] == pytest.approx(
        100 * ours / (ours + step)
    )
    time = found["SIGReg's share of a train step: time"]
    assert time["value"] is None and time["note"]
    capsys.readouterr()
    benchmark.main([f"--markdown={path}"])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 + len(found)
    assert any("share of a train step: time | not measured |" in line for line in table)


@pytest.mark.slow
def test_the_share_is_measured_where_it_can_be():
    percent, *seconds = child.call("tests.experiments.in_a_child:share_of_a_step", {})
    assert percent["unit"] == "%" and percent["value"] < 100
    assert len(seconds) == 2 and all(item["value"] > 0 for item in seconds)


@pytest.mark.slow
@pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed")
def test_programs_for_tpus_are_measured(tmp_path):
    _, found = losses(tmp_path, "--parts=tpu")
    for implementation in ("xla", "pallas"):
        name = f"SIGReg, {implementation}, TPU"
        assert found[f"{name}: all-reduces"]["value"] == 1
        assert found[f"{name}: numbers in all all-reduces"]["value"] <= 2 * 256 * 5
    for batch in ("1,024", "2,048"):
        for transport in ("ring", "all_gather"):
            assert found[f"InfoNCE, {transport}, TPU, B {batch}: memory a chip"]["value"] > 0
    assert "InfoNCE, full matrix, TPU, B 2,048: memory a chip" in found
    assert "InfoNCE, full matrix, TPU, B 1,024: memory a chip" not in found


def test_without_libtpu_it_is_said_how_to_get_it(monkeypatch):
    from experiments.benchmarks import tpu

    monkeypatch.setattr(tpu, "has_libtpu", lambda: False)
    sizes = {"samples": 1, "sigreg_dim": 1, "slices": 1, "knots": 2, "infonce_dim": 1}
    lists = {"batches": [1], "naive_batches": []}
    found = tpu.measure(**sizes, **lists, sigreg_chips="", infonce_chips="", bar=True)
    assert found and all(x["value"] is None and "requirements-tpu" in x["note"] for x in found)


def test_a_bar_that_is_missed_is_shown():
    item = Measurement("x", 3.0, "MB")
    assert item.verdict == ""
    assert item.held_to(at_most=2).verdict == "MISSED: at most 2 MB"
    assert item.held_to(at_least=3).verdict == "met: at least 3 MB"
    assert Measurement("x", None, "MB").held_to(at_most=2).verdict == "open: at most 2 MB"
    assert "MISSED: at most 2 MB" in measurement.table([item.held_to(at_most=2)])


def test_peak_memory_is_that_of_the_call():
    megabytes = child.call("tests.experiments.in_a_child:peak_of_a_buffer", {}) / 1e6
    assert 99 <= megabytes < 110  # the system counts roughly


def test_what_fails_in_a_child_is_told():
    with pytest.raises(UserError, match="jax_num|CPU devices is 0"):
        child.call("jepa.parallel.mesh:set_cpu_devices", {"count": 0})
    with pytest.raises(UserError, match="SIGKILL; most likely the memory"):
        child.call("tests.experiments.in_a_child:die", {})
    with pytest.raises(RuntimeError, match="exit code 1"):
        child.call("math:nothing", {})


def test_mistakes_in_the_flags_of_losses_are_named(tmp_path, monkeypatch):
    for arguments, named in (
        (["--parts=infonce,nothing"], "parts"),
        (["--infonce_batch=127"], "infonce_batch is 127"),
        (["--sigreg_knots=1"], "sigreg_knots"),
        (["--tpu_batches=0"], "tpu_batches"),
        (["--tpu_batches=few"], "tpu_batches"),
        (["--share_model=enormous"], "share_model"),
        (["--share_size=225"], "share_size"),
        (["--cache_parts=3"], "cache_parts has 3"),
        (["--cache_batch=24"], "cache_batch is 24"),
    ):
        with pytest.raises(UserError, match=named):
            losses(tmp_path, *arguments)
    (tmp_path / "other.json").write_text("{}")
    for path, named in (("other.json", "no report"), ("absent.json", "cannot be read")):
        with pytest.raises(UserError, match=named):
            benchmark.main([f"--markdown={tmp_path / path}"])


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
