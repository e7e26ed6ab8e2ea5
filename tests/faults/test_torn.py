"""Every file of a checkpoint, damaged at random: never other values, never a wrong position."""

import json
import logging
import shutil

import pytest

from jepa.training.checkpoints import Checkpoints
from tests.faults import torn
from tests.training.test_checkpoints import shapes, state


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_file_of_a_checkpoint_flipped_once(tmp_path):
    found = torn.damage_checkpoints(tmp_path, state(3.0), seed=0, rounds=1, kinds=("flip",))
    assert found["damaged"] == found["files"] >= 12
    # Which flips matter hangs on times of day in the files; those of the arrays always do.
    assert found["the one before"] >= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_file_of_a_checkpoint_damaged_in_every_way(tmp_path):
    found = torn.damage_checkpoints(tmp_path, state(3.0), seed=1, rounds=3)
    assert found["damaged"] >= 360


def test_a_digit_of_the_position_that_flipped_is_damage(tmp_path, caplog):
    saved = Checkpoints(tmp_path / "checkpoints")
    for step in (7, 8):
        saved.save(step, state(float(step)), torn.DATA[step], {})
    saved.wait()
    path = tmp_path / "checkpoints" / "8" / "data" / "metadata"
    about = path.read_text()
    assert about.count("64") >= 1
    path.write_text(about.replace('"position": 64', '"position": 65'))
    with caplog.at_level(logging.WARNING, logger="jepa"):
        restored = saved.restore_latest(shapes(state()))
    assert (restored.step, restored.data) == (7, torn.DATA[7])
    assert "position of its loader" in caplog.text
    saved.close()


def test_a_checkpoint_from_before_there_was_a_crc(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoints")
    saved.save(8, state(), torn.DATA[8], {})
    saved.wait()
    path = tmp_path / "checkpoints" / "8" / "data" / "metadata"
    about = json.loads(path.read_text())
    del about["crc"]
    path.write_text(json.dumps(about))
    assert saved.restore_latest(shapes(state())).data == torn.DATA[8]
    saved.close()
    shutil.rmtree(tmp_path / "checkpoints")


@pytest.mark.parametrize("content", [b"", b'{"e/score": 0.', b"\xff\xfe", b"[]"])
def test_an_evaluation_that_was_damaged_keeps_no_run_from_going_on(tmp_path, caplog, content):
    def opened():
        return Checkpoints(tmp_path, keep_last=1, keep_best_metric="e/score")

    saved = opened()
    saved.save(8, state(), torn.DATA[8], {}, {"e/score": 0.9})
    saved.close()
    (tmp_path / "8" / "metrics" / "metrics").write_bytes(content)
    again = opened()
    assert again.restore_latest(shapes(state())).step == 8
    assert again.best_step() is None and again.is_best({"e/score": 0.1})
    assert "counts for nothing" in caplog.text
    again.close()
