"""Compiling ahead of time: what is said, what is kept, and how mistakes end."""

import json
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict

from configs import pods
from configs.v_jepa_2 import world
from experiments import precompile_pods, precompile_program, precompile_report
from jepa.errors import UserError
from jepa.parallel import chips, topology
from jepa.training import config as configs
from jepa.training import phases

needs_libtpu = pytest.mark.skipif(not topology.has_libtpu(), reason="libtpu is not installed")
WORLD = "configs/v_jepa_2/world.py"


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.precompile", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
    )
    return done.returncode, done.stdout, done.stderr


def small(**keys):
    """V-JEPA 2 as small as it gets."""
    config = world.get_config()
    config.train.global_batch = 16
    config.model.encoder.update(width=48, depth=2, heads=2, remat="full")
    config.model.predictor.update(width=24, depth=1, heads=2)
    config.update(keys)
    return config


def job(where="h100:8", sizes=None, **keys):
    return precompile_program.make_job("small", small(**keys), chips.topology(where), sizes)


@pytest.fixture(scope="module")
def counted():
    """A step counted for GPUs."""
    made = job(sizes={"data": 2, "fsdp": 4, "tensor": 1, "context": 1})
    return precompile_program.run(made, made.phases[0])


def test_gpus_are_counted(counted):
    assert (counted["chips"], counted["mesh"]) == (8, {"data": 2, "fsdp": 4})
    memory = counted["memory"]
    # Parameters, their average and two moments in float32, cut over fsdp; norms are whole.
    state = 4 * 4 * counted["parameters"]
    assert state / 4 < memory["arguments"] < state
    assert memory["total"] == memory["arguments"] + memory["temporaries"]
    assert counted["fits"] and counted["estimated"]
    text = precompile_report.page(counted)
    assert "estimated" in text and "MFU at most" in text


def test_what_is_said_of_a_program_that_does_not_fit(counted):
    memory = {"arguments": 2 * 2**30, "temporaries": None, "program": None}
    memory |= {"total": 20 * 2**30, "capacity": 15.75 * 2**30, "spare": 1 - 20 / 15.75}
    entry = {**counted, "fits": False, "estimated": False, "roofline": None, "memory": memory}
    assert "DOES NOT FIT: 20.00 of 15.75 GiB, 4.25 too much" in precompile_report.page(entry)
    assert "-27 %" in precompile_report.table([entry])


def test_the_table_goes_between_the_marks_of_a_document(counted, tmp_path):
    path = tmp_path / "pods.md"
    path.write_text(f"Before.\n{precompile_report.BEGIN}\nold\n{precompile_report.END}\nAfter.\n")
    precompile_report.write_markdown(path, [counted])
    text = path.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and len({row.count("|") for row in rows}) == 1
    path.write_text("no marks")
    with pytest.raises(UserError, match="has no lines"):
        precompile_report.write_markdown(path, [counted])


@pytest.fixture
def ran(monkeypatch):
    """What `--all` compiles, by config and phase, in the place of compiling it."""
    told = []

    def run(job, prepared):
        config = prepared.phase.config
        told.append((job.config.partition(":")[2], prepared.phase.name))
        return {
            "config": job.config,
            "phase": prepared.phase.name,
            "topology": job.topology.name,
            "chips": 256,
            "memory": {"capacity": job.topology.chip.memory},
            **precompile_program.settings(config, 256),
            "digest": precompile_program.digest(config),
        }

    monkeypatch.setattr(precompile_program, "run", run)
    monkeypatch.setattr(
        precompile_program,
        "make_job",
        lambda name, config, where, sizes: precompile_program.Job(
            name,
            where,
            None,
            [
                precompile_program.Prepared(phase, None, None, None)
                for phase in phases.plan(configs.resolve(config))
            ],
        ),
    )
    return told


def test_all_goes_on_where_it_stopped(ran, monkeypatch, tmp_path):
    name = "v_jepa_2_large@v5e_16x16"
    first = precompile_pods.run(tmp_path, name, ["cooldown"])
    assert [entry["phase"] for entry in first] == ["cooldown"]
    both = precompile_pods.run(tmp_path, name, [])
    assert [entry["phase"] for entry in both] == ["main", "cooldown"]
    assert [phase for _, phase in ran] == ["cooldown", "main"]
    monkeypatch.setitem(
        pods._ON_PODS, (name[:14], name[15:]), {"cooldown": {"train.accumulate": 2}}
    )
    assert precompile_pods.run(tmp_path, name, ["main"]) == both[:1]  # the other one is out of date
    assert len(precompile_pods.run(tmp_path, name, [])) == 2
    assert [phase for _, phase in ran[2:]] == ["cooldown"]
    (tmp_path / f"{name}-main.json").write_text("{")
    with pytest.raises(UserError, match=f"{name}-main.json is no result"):
        precompile_pods.run(tmp_path, name, [])
    with pytest.raises(UserError, match="--only='nothing'"):
        precompile_pods.run(tmp_path, "nothing", [])
    with pytest.raises(UserError, match=r"--phase=typo: .*\['main', 'cooldown'\]"):
        precompile_pods.run(tmp_path, name, ["main", "typo"])


def test_all_compiles_again_what_is_of_another_config(ran, monkeypatch, tmp_path):
    name, path = "lejepa_huge@v6e_16x16", tmp_path / "lejepa_huge@v6e_16x16.json"
    precompile_pods.run(tmp_path, name, [])
    # A result from before there were digests is one of this config, and is given its digest.
    entry = json.loads(path.read_text())
    digest = entry.pop("digest")
    path.write_text(json.dumps(entry))
    assert precompile_pods.run(tmp_path, "v_jepa_2_large@v5e_16x16", ["main"])[-1] == entry | {
        "digest": digest
    }
    assert json.loads(path.read_text())["digest"] == digest
    assert ran == [(name, ""), ("v_jepa_2_large@v5e_16x16", "main")]
    path.write_text(json.dumps(entry | {"memory": {"capacity": 1.0}}))
    assert len(precompile_pods.run(tmp_path, "large@v5e", ["main"])) == 1
    path.write_text(json.dumps(entry | {"digest": digest}))
    # None of the settings that the table shows knows of this one.
    overrides = pods._ON_PODS | {("lejepa_huge", "v6e_16x16"): {"dtype": "float32"}}
    monkeypatch.setattr(pods, "_ON_PODS", overrides)
    assert len(precompile_pods.run(tmp_path, "large@v5e", ["main"])) == 1
    assert len(precompile_pods.run(tmp_path, name, [])) == 2
    assert ran[2:] == [(name, "")]


def test_a_digest_is_of_what_a_step_is_made_of():
    def digest(path=None, value=None):
        config = pods.get_config("vl_jepa@v5p_4x4x8")
        if path is not None:
            pods._set(config, path, value)
        return precompile_program.digest(phases.plan(configs.resolve(config))[0].config)

    first = digest()
    assert len(first) == 64 and first == digest()
    for path, value in {
        "model.predictor.depth": 4,
        "model.y_encoder.width": 128,
        "data.text_length": 16,
        "optimizer.name": "muon",
        "dtype": "float32",
    }.items():
        assert digest(path, value) != first, path
    for path, value in {"seed": 1, "data.workers": 2, "train.save_every": 7}.items():
        assert digest(path, value) == first, path


def test_what_falls_short_of_what_is_asked_for(counted):
    def faults(share, reached, spare=None, mfu=None):
        roofline = None if reached is None else {**counted["roofline"], "mfu_serial": reached}
        memory = {**counted["memory"], "spare": share}
        entry = {**counted, "memory": memory, "roofline": roofline}
        told = precompile_report.faults([entry], spare, mfu)
        return [line.removeprefix("small on h100:8: ") for line in told]

    assert faults(0.08, 0.5, spare=0.08, mfu=0.5) == faults(0.01, 0.1) == []
    assert faults(0.01, 0.4, spare=0.08, mfu=0.5) == [
        "1.0 % is left, and --spare asks for 8 %",
        "MFU is 40.0 %, and --mfu asks for 50 %",
    ]
    assert faults(0.01, 0.4, mfu=0.3) == []
    for share in (None, -0.2):
        assert faults(share, None, spare=0.0, mfu=0.1) == [
            "it does not fit, and --spare asks for 0 %",
            "it has no roofline, and --mfu asks for 10 %",
        ]


def test_all_judges_what_it_was_asked_for_and_shows_everything(counted, tmp_path):
    for name in ("v_jepa_2_large", "v_jepa_2_huge"):
        name = f"{name}@h100_64"
        for phase in precompile_pods.plan(pods.get_config(name)):
            own = {"config": f"configs/pods.py:{name}", "phase": phase.name, "chips": 64}
            own |= precompile_program.settings(phase.config, 64)
            own["digest"] = precompile_program.digest(phase.config)
            precompile_pods.write(
                precompile_pods.path_of(tmp_path, name, phase.name), {**counted, **own}
            )
    code, told, errors = command(
        "--all", f"--results={tmp_path}", "--only=large@h100", "--phase=main", "--spare=1.1"
    )
    assert code == 1 and len(told.splitlines()) == 5
    (line,) = errors.splitlines()
    assert line.startswith("configs/pods.py:v_jepa_2_large@h100_64 main on h100:8: ")


@pytest.mark.parametrize("name", pods.CONFIGS)
@pytest.mark.parametrize("pod", pods.PODS)
def test_a_pod_changes_where_a_config_runs_and_nothing_else(name, pod):
    config = pods.get_config(f"{name}@{pod}")
    module, size = pods.CONFIGS[name]
    published = __import__(module, fromlist=["get_config"]).get_config(size)
    count = chips.topology(pods.PODS[pod]).chips
    mine, theirs = (phases.plan(configs.resolve(each)) for each in (config, published))
    for own, other in zip(mine, theirs, strict=True):
        assert own.config.train.global_batch == other.config.train.global_batch
        assert own.config.optimizer == other.config.optimizer
        assert own.config.data == other.config.data
        sizes = configs.mesh_sizes(own.config, count)
        shards = sizes["data"] * sizes["fsdp"]
        assert own.config.train.global_batch % (shards * own.config.train.accumulate) == 0


@pytest.mark.parametrize("argument", ["v_jepa_2_large", "nothing@v5e_16x16", "vl_jepa@v4_2x2"])
def test_a_pod_that_does_not_exist(argument):
    with pytest.raises(UserError, match="configs/pods.py has no"):
        pods.get_config(argument)


def test_features_stand_in_for_clips_where_they_are_computed_once():
    outline = precompile_program.Outline()
    given = ConfigDict(pods.get_config("vl_jepa@h100_64"))
    given.model.x_encoder.cache_features = True
    given.model.x_encoder.update(width=24, depth=1, heads=2)
    second = phases.plan(configs.resolve(given))[1]
    spec = outline.step_spec(second, outline.method(second))
    # Four times 256 tokens of 8 frames of 256 pixels.
    assert spec["video"]["features"].shape == (12_288, 1024, 24)
    given.model.x_encoder.cache_features = False
    second = phases.plan(configs.resolve(given))[1]
    spec = outline.step_spec(second, outline.method(second))
    assert spec["video"].shape == (12_288, 8, 256, 256, 3)


@pytest.mark.parametrize(
    "where, sizes, message",
    [
        ("h100:8", {"data": 3, "fsdp": 1, "tensor": 1, "context": 1}, "does not fit 8 devices"),
        ("h100:64", {"data": 64, "fsdp": 1, "tensor": 1, "context": 1}, "global_batch"),
        ("h100:8", {"data": 1, "fsdp": 1, "tensor": 8, "context": 1}, "heads"),
    ],
)
def test_a_mesh_that_does_not_divide(where, sizes, message):
    with pytest.raises(UserError, match=message):
        job(where, sizes)


def test_without_libtpu_the_mend_is_named(monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    with pytest.raises(UserError, match="needs libtpu"):
        job("v5e:2x2")


@pytest.mark.parametrize("text", ["data", "data=x", "rows=4", "data=4;fsdp=2"])
def test_a_mesh_that_is_none(text):
    with pytest.raises(UserError, match="--mesh="):
        precompile_program.parse_mesh(text)


def test_a_mistake_is_one_sentence_and_exit_code_2():
    code, out, errors = command(f"--config={WORLD}", "--topology=v9:2x2")
    assert (code, out) == (2, "")
    assert errors.splitlines()[-1].startswith("error: --topology='v9:2x2' names no chips")


@needs_libtpu
@pytest.mark.slow
def test_a_config_is_compiled_for_two_meshes(tmp_path):
    out = tmp_path / "found.json"
    code, told, errors = command(
        f"--config={WORLD}",
        "--topology=v5e:2x2",
        "--mesh=fsdp=4",
        "--mesh=data=2,fsdp=2",
        f"--out={out}",
        "--config.model.encoder.depth=2",
        "--config.model.predictor.depth=1",
    )
    assert code == 0, errors
    first, second = json.loads(out.read_text())
    assert first["mesh"] == {"fsdp": 4} and second["mesh"] == {"data": 2, "fsdp": 2}
    assert first["fits"] and first["memory"]["spare"] > 0.9
    assert first["memory"]["arguments"] < second["memory"]["arguments"]
    axes = {one["axes"] for one in second["collectives"]}
    assert {"data", "fsdp"} <= {axis for joined in axes for axis in joined.split("+")}
    assert first["roofline"]["overlapped"] <= first["roofline"]["serial"]
    assert told.count("DOES NOT FIT") == 0 and "fsdp=4" in told


@needs_libtpu
@pytest.mark.slow
def test_a_program_that_does_not_fit_is_a_result():
    config = small()
    config.data.update(size=512)
    config.train.global_batch = 4096
    sizes = {"data": 4, "fsdp": 1, "tensor": 1, "context": 1}
    made = precompile_program.make_job("large", config, chips.topology("v5e:2x2"), sizes)
    found = precompile_program.run(made, made.phases[0])
    assert not found["fits"] and found["memory"]["total"] > found["memory"]["capacity"]
    assert jax.default_backend() == "cpu"
