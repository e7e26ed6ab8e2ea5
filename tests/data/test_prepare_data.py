"""The command: what it writes, what it says, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from video_files import write_video

from experiments import cli, prepare_data
from jepa.data.dataset import Dataset
from jepa.errors import UserError


@pytest.fixture(autouse=True)
def keep_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*arguments):
    return cli.exit_code(lambda: prepare_data.main([str(a) for a in arguments]))


def test_the_world_and_a_second_run(tmp_path, capsys):
    arguments = ("--output", tmp_path, "--world-clips", "train=6", "validation=4", "--seed", 3)
    assert run(*arguments, "--processes", 1) == 0
    assert f"{tmp_path}: train 6, validation 4 clips" in capsys.readouterr().out
    dataset = Dataset.open(tmp_path)
    assert dataset.settings["seed"] == 3
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(*arguments, "--processes", 1) == 0
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_own_videos_and_their_rejects(tmp_path, capsys):
    write_video(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    (tmp_path / "train.csv").write_text("video,caption\na.mp4,a thing\nb.mp4,another\n")
    (tmp_path / "val.jsonl").write_text('{"video": "a.mp4", "caption": "a thing", "foo": 1}\n')
    out = tmp_path / "out"
    arguments = ("--manifest", tmp_path / "train.csv", f"validation={tmp_path / 'val.jsonl'}")
    assert run("--output", out, *arguments, "--processes", 1, "--caption-query", "Well?") == 0
    said = capsys.readouterr()
    assert f"{out}: train 1, validation 1 clips" in said.out
    assert "columns not used: foo" in said.err
    assert "1 rejected, listed in" in said.err
    assert "train.csv line 3: b.mp4: cannot be decoded" in said.err
    assert Dataset.open(out).caption_queries == ["Well?"]


def test_a_folder_with_labels(tmp_path):
    write_video(tmp_path / "in" / "run" / "a.mp4")
    code = run("--output", tmp_path / "out", "--folder", tmp_path / "in", "--folder-label", "what",
               "--split", "test", "--processes", 1)  # fmt: skip
    assert code == 0
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.name == "out"
    assert dataset.split("test").record(0).labels == {"what": "run"}
    assert dataset.attributes == {"what": {"run": ["run"]}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--processes", "0"], "--processes is 0"),
        (["--processes", "two"], "invalid int value"),
        (["--world-clips", "train"], "give SPLIT=N"),
        (["--world-clips", "train=-3"], "give SPLIT=N"),
        (["--world-clips", "nowhere=3"], "no split 'nowhere'"),
        (["--folder", "x"], "--output is missing"),
        (["--folder", "x", "--output", "o", "--seed", "1"], "leave them out"),
        (["--folder", "none", "--output", "o"], "is not a folder"),
        (["--manifest", "none.csv", "--output", "o"], "No such file"),
        (["--transcode-size", "64"], "is for own videos"),
        (["--runner", "DirectRunner"], "is for own videos"),
        (["--manifest", "gs://b/x.csv", "--output", "o"], "gs://b/x.csv is an address"),
        (["--manifest", "x.csv", "--output", "gs://b/o"], "gs://b/o is an address"),
        (["--folder", "x", "--output", "o", "--", "--project=p"], "name a --runner"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_beam_a_runner_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "jepa.data.beam", raising=False)
    with pytest.raises(UserError, match=re.escape('pip install -e ".[beam]"')):
        prepare_data.main(
            ["--output", str(tmp_path / "o"), "--folder", "x", "--runner", "DirectRunner"]
        )
    assert not list(tmp_path.iterdir())


def test_help_helps():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.prepare_data", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("--manifest", "--world-clips", "train=12000", "data/world"):
        assert word in done.stdout


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_terminating_leaves_no_half_shard_and_no_worker(tmp_path):
    command = [sys.executable, "-m", "experiments.prepare_data", "--output", str(tmp_path)]
    command += ["--world-clips", "train=4000", "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "goes on from here" in said
    assert not (tmp_path / "dataset.json").exists()
    deadline = time.monotonic() + 20
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(process.pid)


def _alive(session):
    """Command lines of the processes of a session that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            if stat[3] == str(session) and stat[0] != "Z":
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_exit_codes(capsys):
    def raises(error):
        raise error

    assert cli.exit_code(lambda: None) == 0
    assert cli.exit_code(lambda: 3) == 3
    assert cli.exit_code(lambda: raises(UserError("no"))) == 2
    assert cli.exit_code(lambda: raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.startswith("error: no\n")


_ABSL = """
import sys
from absl import flags
from ml_collections import config_flags
from experiments import cli
config = config_flags.DEFINE_config_file("config")
workdir = flags.DEFINE_string("workdir", None, "where", required=True)
flags.mark_flag_as_required("config")
if __name__ == "__main__":
    cli.run_absl(lambda: print(config.value.model.width, workdir.value))
"""
_CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"model": {"width": 8}, "phases": ({"steps": 1},)})
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--config=c.py --workdir=w --config.model.width=9", 0, "9 w"),
        (
            "--config=c.py --workdir=w --config.model.widht=9",
            2,
            "no key 'widht' there; did you mean 'width'?",
        ),
        ("--config=c.py --workdir=w --config.modle.width=9", 2, "has no key 'modle'"),
        (
            "--config=c.py --workdir=w --config.model.width.x=9",
            2,
            "no key 'x' there; see the config",
        ),
        ("--config=c.py --workdir=w --config.zzz=9", 2, "no key 'zzz' there; see the config"),
        ("--config=c.py --workdir=w --config.model.width=wide", 2, "width=wide"),
        (
            "--config=c.py --workdir=w --config.phases[1].steps=9",
            2,
            "--config.phases[1].steps=9: the config has nothing in that place; places of a list",
        ),
        ("--config=c.py --workdir=w --config.phases[x].steps=9", 2, "nothing in that place"),
        ("--config=none.py --workdir=w", 2, "--config: the config file cannot be read"),
        ("--config=none.py --workdir=w --config.model.width=9", 2, "file cannot be read"),
        ("--config=c.py", 2, "--workdir"),
        ("--workdir=w", 2, "--config"),
        ("--workdir=w --config.model.width=9", 2, "name the config first"),
        ("--config=c.py --workdir=w --lr=3", 2, "unknown flag --lr"),
        ("--config=c.py --workdir=w more", 2, "unexpected argument 'more'"),
    ],
)
def test_absl_entry_points(tmp_path, arguments, code, words):
    (tmp_path / "main.py").write_text(_ABSL)
    (tmp_path / "c.py").write_text(_CONFIG)
    root = os.path.dirname(os.path.dirname(os.path.abspath(cli.__file__)))
    done = subprocess.run(
        [sys.executable, "main.py", *arguments.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert words in (done.stderr if code else done.stdout)
    if code:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_a_mistake_in_the_code_of_a_config_file_keeps_its_place(tmp_path, monkeypatch):
    flagged = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flagged)
    monkeypatch.setattr(flags, "FLAGS", flagged)
    (tmp_path / "c.py").write_text("def get_config():\n    return [][3]\n")
    with pytest.raises(IndexError, match="list index"):
        cli.parse_flags(["main.py", f"--config={tmp_path / 'c.py'}", "--config.model.width=9"])
