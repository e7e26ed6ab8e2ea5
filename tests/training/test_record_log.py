"""The log of records: which ones each step was made of, whatever happened on the way."""

import json

import jax
import pytest

from jepa.batch_part import WHOLE, BatchPart
from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop, record_log
from jepa.training.record_log import RecordLog
from tests.training import toy


def written(tmp_path, steps, process=0, part=WHOLE):
    log = RecordLog(tmp_path, process=process, part=part)
    for step, keys in steps:
        log.write(step, keys)
    log.sync()
    log.close()


def test_the_last_attempt_at_a_step_counts(tmp_path):
    written(tmp_path, [(1, ["a"]), (2, ["b"]), (3, ["never saved"])])
    written(tmp_path, [(2, ["b"]), (3, ["c"])])
    assert record_log.read(tmp_path) == {1: ["a"], 2: ["b"], 3: ["c"]}


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_torn_last_line_is_no_line_and_spoils_no_other(tmp_path, cut):
    written(tmp_path, [(1, ["a"]), (2, ["b"])])
    path = tmp_path / "records" / "00000.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    written(tmp_path, [(2, ["B"]), (3, ["c"])])
    assert record_log.read(tmp_path) == {1: ["a"], 2: ["B"], 3: ["c"]}


def test_parts_are_put_together_and_each_counts_once(tmp_path):
    for process, part in ((0, 0), (1, 1), (2, 1)):  # two processes with the same rows
        written(tmp_path, [(1, [f"row {part}"])], process, BatchPart((part,), 2))
    written(tmp_path, [(2, ["first only"])], 0, BatchPart((0,), 2))
    assert record_log.read(tmp_path) == {1: ["row 0", "row 1"]}


def test_pieces_that_lie_apart_come_to_their_places(tmp_path):
    for process, mine in ((0, (0, 2)), (1, (1, 3))):
        rows = [f"{piece}{row}" for piece in mine for row in "ab"]
        written(tmp_path, [(1, rows)], process, BatchPart(mine, 4))
    assert record_log.read(tmp_path) == {1: ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"]}


def test_a_run_on_fewer_processes_goes_on(tmp_path):
    for process in (0, 1):
        written(
            tmp_path,
            [(1, [f"{process}"]), (2, [f"old {process}"])],
            process,
            BatchPart((process,), 2),
        )
    written(tmp_path, [(2, ["0", "1"])])
    assert record_log.read(tmp_path) == {1: ["0", "1"], 2: ["0", "1"]}


def test_no_log(tmp_path):
    with pytest.raises(UserError, match="train.log_records=True"):
        record_log.read(tmp_path)


def test_a_loader_that_names_no_records(tmp_path):
    with pytest.raises(UserError, match="train.log_records"):
        written(tmp_path, [(1, None)])


class Named(toy.Loader):
    def record_keys(self):
        return [f"{self.next - 1}:{row}" for row in range(2)]


def test_a_run_logs_what_its_steps_took_not_what_was_read_ahead(tmp_path):
    config = configs.resolve(toy.config(train__steps=6, train__log_records=True))
    config.train.health_every = 0
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:1])
    assert loop.train(
        config, tmp_path, method=toy.Toy(config), loader=Named(16, 3), mesh=mesh
    ).finished
    expected = {step: [f"{step - 1}:0", f"{step - 1}:1"] for step in range(1, 7)}
    assert record_log.read(tmp_path) == expected
    lines = (tmp_path / "records" / "00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 7))
