"""The working directory: one run at a time, errors of the disk, and what a finished run leaves."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from jepa.data import storage
from jepa.errors import UserError
from jepa.training import disk, workdir

HOLD = """
import sys, time
from jepa.training import workdir
with workdir.locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_at_a_time(tmp_path):
    with (
        workdir.locked(tmp_path / "run"),
        pytest.raises(UserError, match="Another run is training in .*run; wait for it"),
        workdir.locked(tmp_path / "run"),
    ):
        pass
    with workdir.locked(tmp_path / "run"), workdir.locked(tmp_path / "another"):
        pass


def test_a_killed_run_lets_go(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="Another run"), workdir.locked(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with workdir.locked(tmp_path):
        pass


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (
        lambda: workdir.locked(tmp_path / "file" / "run").__enter__(),
        lambda: workdir.claim(tmp_path / "file" / "run", {}),
    ):
        with pytest.raises(UserError, match="cannot write .*file"):
            act()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing(tmp_path, monkeypatch, code):
    workdir.claim(tmp_path, {"seed": 0})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')

    def fail(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(storage, "sync", fail)
    with pytest.raises(UserError, match=os.strerror(code)):
        workdir.claim(tmp_path, {"seed": 1})
    with pytest.raises(UserError, match=os.strerror(code)):
        workdir.forget_after(tmp_path, 1)
    assert workdir.read_config(tmp_path) == {"seed": 0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "metrics.jsonl"]


def test_a_read_only_disk_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="/x cannot be written .*Read-only"), disk.room_for("/w"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/x")


@pytest.fixture
def finished(tmp_path):
    files = tmp_path / "checkpoints" / "20" / "state"
    files.mkdir(parents=True)
    (files / "a").write_bytes(b"numbers")
    workdir.finish(tmp_path, 20)
    return tmp_path


def test_a_finished_run_says_so(finished, tmp_path):
    assert workdir.finished_step(finished) == 20
    assert workdir.finished_step(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"numb", b"numberz", None])
def test_a_finished_run_whose_checkpoint_is_damaged_is_not_finished(finished, content):
    file = finished / "checkpoints" / "20" / "state" / "a"
    file.unlink() if content is None else file.write_bytes(content)
    assert workdir.finished_step(finished) is None


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"step": 20, "files": {}}'])
def test_a_note_that_says_nothing_counts_as_none(finished, note):
    (finished / "finished.json").write_text(note)
    assert workdir.finished_step(finished) is None
