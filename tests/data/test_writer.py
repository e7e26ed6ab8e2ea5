"""Shards are whole or absent, a stopped writer goes on, and a damaged dataset says which file."""

import errno
import json
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import threading

import pytest
import tokenizers

from jepa.data import schema, storage
from jepa.data.dataset import Dataset
from jepa.data.writer import DatasetWriter, Reject, shard_name, write_shard
from jepa.errors import UserError

QUERY = "What happens?"


def record(number, text=None):
    return schema.Record(
        key=f"clip {number}",
        video=bytes([number % 256]) * (50 + number),
        width=8,
        height=8,
        frames=2,
        fps=4.0,
        captions=(schema.Caption("c0", text or f"ball {number} falls, fast"),),
        questions=(schema.Question("q0", "Colour?", "red", "colour", ("red", "blue")),),
        labels={"colour": "red", "moves_to": f"left_{number % 2}"},
    )


def write(directory, counts=(3, 4), settings=None, **finish):
    """A dataset of one split with one shard for each count."""
    writer = DatasetWriter(directory, name="toy", settings=settings or {"seed": 0})
    for index in writer.missing("train", len(counts)):
        first = sum(counts[:index])
        records = [record(first + i) for i in range(counts[index])]
        write_shard(directory, "train", index, len(counts), records)
    writer.finish({"train": len(counts)}, caption_queries=[QUERY], **finish)
    return Dataset.open(directory)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_random_access_over_shards(tmp_path):
    split = write(tmp_path, (3, 1, 4)).split("train")
    assert len(split) == 8
    for index in (7, 0, 3, 2, 4):
        assert split.raw(index) == schema.encode(record(index))
    assert split.record(5, video=False).video == b""
    for outside in (-1, 8):
        with pytest.raises(IndexError):
            split.raw(outside)


def test_what_is_left_on_disk(tmp_path):
    write(tmp_path, (2, 2))
    assert names(tmp_path) == [
        "dataset.json",
        "texts.json",
        "tokenizer.json",
        "train-00000-of-00002.array_record",
        "train-00001-of-00002.array_record",
    ]


def test_split_is_picklable_and_reads_in_other_processes_and_threads(tmp_path):
    split = write(tmp_path, (5, 5)).split("train")
    expected = [split.raw(i) for i in range(10)]
    copy = pickle.loads(pickle.dumps(split))
    assert copy.raw(9) == expected[9]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(split.raw, range(10)) == expected
    wrong = []

    def read():
        wrong.extend(i for i in list(range(10)) * 50 if split.raw(i) != expected[i])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_texts_queries_and_attributes(tmp_path):
    dataset = write(tmp_path, (1, 1))
    answers = ["blue", "red"]
    assert dataset.texts() == sorted(["ball 0 falls, fast", "ball 1 falls, fast", *answers])
    assert dataset.split("train").texts() == dataset.texts()
    assert dataset.queries() == ["Colour?", QUERY]
    assert dataset.split("train").queries() == ["Colour?"]
    assert dataset.attributes == {
        "colour": {"red": ["red"]},
        "moves_to": {"left_0": ["left 0"], "left_1": ["left 1"]},
    }


def test_given_attributes_are_kept(tmp_path):
    given = {"colour": {"red": ["a red thing", "something red"]}}
    assert write(tmp_path, attributes=given, licence="CC0").attributes == given
    assert Dataset.open(tmp_path).licence == "CC0"


def test_tokenizer_knows_every_word_and_nothing_else(tmp_path):
    dataset = write(tmp_path, (2,))
    tokenizer = tokenizers.Tokenizer.from_file(str(dataset.directory / "tokenizer.json"))
    assert tokenizer.get_vocab()["[PAD]"] == 0
    assert tokenizer.get_vocab()["[UNK]"] == 1
    encoded = tokenizer.encode("BALL 1 falls, what happens? zebra")
    assert encoded.tokens == ["ball", "1", "falls", ",", "what", "happens", "?", "[UNK]"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "a"), write(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert one.split("train").digest == two.split("train").digest
    assert write(tmp_path / "c", (3, 5)).split("train").digest != one.split("train").digest


def test_a_stopped_writer_goes_on_at_the_first_missing_shard(tmp_path):
    writer = DatasetWriter(tmp_path, name="toy", settings={"seed": 0})
    assert writer.missing("train", 3) == [0, 1, 2]
    write_shard(tmp_path, "train", 1, 3, [record(1)])

    def stopped():
        yield record(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, "train", 2, 3, stopped())
    # A shard that was renamed into place but never accounted for does not count.
    (tmp_path / shard_name("train", 0, 3)).write_bytes(b"x")
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(UserError, match="does not exist.*prepare_data"):
        Dataset.open(tmp_path)

    writer = DatasetWriter(tmp_path, name="toy", settings={"seed": 0})
    assert writer.missing("train", 3) == [0, 2]
    with pytest.raises(UserError, match=r"shards \[0, 2\] of 'train' are not written"):
        writer.finish({"train": 3})
    kept = (tmp_path / shard_name("train", 1, 3)).stat().st_ino
    write(tmp_path, (1, 1, 1))
    assert (tmp_path / shard_name("train", 1, 3)).stat().st_ino == kept


def test_a_finished_dataset_is_left_alone(tmp_path):
    write(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)}
    writer = DatasetWriter(tmp_path, name="toy", settings={"seed": 0})
    assert writer.finished
    assert writer.missing("train", 2) == []
    writer.finish({"train": 2})
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)} == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(tmp_path, finished):
    DatasetWriter(tmp_path, name="toy", settings={"seed": 0})
    if finished:
        write(tmp_path)
    with pytest.raises(UserError, match=r"other settings \(seed: 0 there, 1 asked for\); delete"):
        DatasetWriter(tmp_path, name="toy", settings={"seed": 1})


def test_rejects_are_listed(tmp_path):
    DatasetWriter(tmp_path, name="toy", settings={})
    write_shard(tmp_path, "train", 0, 1, [record(0), Reject("b.mp4", "holds no frame")])
    # Another process goes on: what was refused before is not forgotten.
    DatasetWriter(tmp_path, name="toy", settings={}).finish({"train": 1})
    lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"name": "b.mp4", "reason": "holds no frame"}]
    assert len(Dataset.open(tmp_path).split("train")) == 1


def test_a_split_without_records_is_refused(tmp_path):
    writer = DatasetWriter(tmp_path, name="toy", settings={})
    write_shard(tmp_path, "train", 0, 1, [Reject("b.mp4", "holds no frame")])
    with pytest.raises(UserError, match="'train' has no records, e.g. b.mp4: holds no frame"):
        writer.finish({"train": 1})


def test_an_empty_shard_beside_a_full_one_is_skipped(tmp_path):
    split = write(tmp_path, (0, 2, 0, 1)).split("train")
    assert [split.record(i).key for i in range(3)] == ["clip 0", "clip 1", "clip 2"]


def test_double_keys_are_refused(tmp_path):
    with pytest.raises(UserError, match="two records have the key 'clip 1'"):
        write_shard(tmp_path, "train", 0, 1, [record(1), record(1)])


def test_full_disk_while_writing_a_record(tmp_path, monkeypatch):
    class Full:
        def __init__(self, path, options):
            self.file = open(path, "wb")  # noqa: SIM115

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            self.file.close()

    from jepa.data import writer

    monkeypatch.setattr(writer.array_record_module, "ArrayRecordWriter", Full)
    DatasetWriter(tmp_path, name="toy", settings={})
    with pytest.raises(UserError, match=r"cannot write .*train-0.*No space left.*free space"):
        write_shard(tmp_path, "train", 0, 1, [record(1)])
    assert names(tmp_path) == ["partial.json"]


def test_full_disk_while_syncing(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    DatasetWriter(tmp_path, name="toy", settings={})
    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_shard(tmp_path, "train", 0, 1, [record(1)])
    with pytest.raises(UserError, match="No space left"):
        storage.write_atomically(tmp_path / "x.json", "{}")
    assert names(tmp_path) == ["partial.json"]


_LIMITED = """
import resource, sys
from jepa.data.writer import DatasetWriter, write_shard
from jepa.data import schema
from jepa.errors import UserError
import os
directory = sys.argv[1]
DatasetWriter(directory, name="toy", settings={})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
record = lambda i: schema.Record(key=str(i), video=os.urandom(50_000), width=1, height=1, frames=1,
                                 fps=1.0)
try:
    write_shard(directory, "train", 0, 1, map(record, range(10)))
except UserError as error:
    print(error)
"""


def test_a_real_limit_of_the_operating_system(tmp_path):
    assert resource.RLIMIT_FSIZE >= 0
    command = [sys.executable, "-c", _LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert names(tmp_path) == ["partial.json"]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file"):
        DatasetWriter(tmp_path / "file" / "inside", name="toy", settings={})


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_opening_names_a_missing_or_truncated_shard(tmp_path, damage):
    write(tmp_path)
    shard = tmp_path / shard_name("train", 1, 2)
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"shard .*{shard.name} cannot be read"):
        Dataset.open(tmp_path)


def test_reading_names_a_damaged_shard(tmp_path):
    split = write(tmp_path).split("train")
    shard = tmp_path / shard_name("train", 1, 2)
    shard.write_bytes(b"\x55" * shard.stat().st_size)
    assert split.record(0).key == "clip 0"
    with pytest.raises(UserError, match=f"shard .*{shard.name} cannot be read"):
        split.raw(3)


def test_the_address_of_a_bucket_is_refused():
    with pytest.raises(UserError, match="gs://b/data is the address of a bucket.*gcsfuse"):
        Dataset.open("gs://b/data")


def test_unknown_split_and_newer_dataset(tmp_path):
    dataset = write(tmp_path)
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        dataset.split("test")
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Dataset.open(tmp_path)


def test_tensorflow_stays_out():
    code = "import sys, jepa.data.dataset, jepa.data.build; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_small_files_are_whole_or_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    storage.write_atomically(str(path), "é\n")
    assert path.read_bytes() == "é\n".encode()
    storage.write_atomically(path, b"\xff\x00")
    assert path.read_bytes() == b"\xff\x00" and names(path.parent) == ["file"]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        storage.write_atomically(path, "other")
    assert path.read_bytes() == b"\xff\x00" and names(path.parent) == ["file"]
