"""Preparing data with Apache Beam: the same bytes as without, on paths and in buckets.

Skipped where Beam is not installed: it needs other versions of packages that requirements.txt pins.
`make test-beam` runs it in an environment of its own.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time

import pytest

pytest.importorskip("apache_beam")

import gcs_server
from apache_beam.io.localfilesystem import LocalFileSystem
from array_record.python import array_record_module
from video_files import write_video

from experiments import cli, prepare_data
from jepa.data import beam as written_by_beam
from jepa.data import plan
from jepa.data.build import write_dataset
from jepa.data.dataset import Dataset
from jepa.data.shards import part_name, shard_name
from jepa.data.storage import Files
from jepa.errors import UserError

# Not "DirectRunner", which would first try to download another runner.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
OPTIONS = plan.Options(records_per_shard=2)


class Bucket(LocalFileSystem):
    """`bucket://NAME/...` lies in a directory: as little of a bucket as the code relies on."""

    root = None

    @classmethod
    def scheme(cls):
        return "bucket"

    def has_dirs(self):
        return False

    def _path(self, url):
        # An absolute path, which the methods inherited pass on, stays what it is.
        return str(self.root / url.removeprefix("bucket://")) + "/" * url.endswith("/")

    def match(self, patterns, limits=None):
        prefix = str(self.root) + "/"
        found = super().match([self._path(p) for p in patterns], limits)
        for result in found:
            for metadata in result.metadata_list:
                metadata.path = "bucket://" + metadata.path.removeprefix(prefix)
        return found

    def create(self, path, *args, **kwargs):
        return super().create(self._path(path), *args, **kwargs)

    def open(self, path, *args, **kwargs):
        return super().open(self._path(path), *args, **kwargs)

    def exists(self, path):
        return super().exists(self._path(path))

    def rename(self, old, new):
        return super().rename([self._path(p) for p in old], [self._path(p) for p in new])

    def delete(self, paths):
        for path in map(self._path, paths):
            (shutil.rmtree if path.endswith("/") else os.remove)(path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "root", tmp_path / "bucket")
    (tmp_path / "bucket").mkdir()
    return tmp_path / "bucket"


def make_videos(folder):
    """Five clips, of which one is no video and one is not there; and a line that is wrong."""
    for i in range(3):
        write_video(folder / f"{i}.mp4", frames=4 + i)
    (folder / "bad.mp4").write_bytes(b"no video")
    rows: list[dict] = [
        {"video": f"{i}.mp4", "caption": f"clip {i}", "label.n": str(i)} for i in range(3)
    ]
    rows[1] |= {"query": "Which?", "answer": "one", "candidates": ["one", "two"], "end": 0.5}
    rows += [{"video": "bad.mp4"}, {"video": "gone.mp4"}, {"video": "0.mp4", "key": "x", "end": -1}]
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def contents(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def by_beam(directory, *sources, options=OPTIONS, **more):
    return written_by_beam.write_dataset(str(directory), sources, options, runner=RUNNER, **more)


def manifest_source(location, split="train"):
    return plan.Source(split, "manifest", str(location))


def test_the_directory_is_that_of_the_local_writer_byte_for_byte(tmp_path):
    manifest = make_videos(tmp_path / "in")
    sources = [manifest_source(manifest), plan.Source("all", "folder", str(tmp_path / "in"), "x")]
    write_dataset(tmp_path / "a", sources, name="mine", records_per_shard=2)
    counters = by_beam(tmp_path / "b", *sources, name="mine")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "b" / "rejects.jsonl").exists()
    # Six lines: three clips, two without a video, one refused. The folder: three and one.
    assert counters == {
        "shards": 3 + 2,
        "records": 3 + 3,
        "rejects": 3 + 1,
        "bytes": 2 * sum((tmp_path / "in" / f"{i}.mp4").stat().st_size for i in range(3)),
    }
    assert by_beam(tmp_path / "b", *sources, name="mine") == {}


def test_tars(tmp_path):
    write_video(tmp_path / "0.mp4")
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / "0.mp4", "0.mp4")
            text = tarfile.TarInfo("0.txt")
            text.size = 5
            tar.addfile(text, io.BytesIO(b"clip " if name == "a" else b"other"))
    source = plan.Source("train", "webdataset", str(tmp_path / "*.tar"))
    write_dataset(tmp_path / "a", [source], name="mine")
    by_beam(tmp_path / "b", source, options=plan.Options(), name="mine")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_is_there_is_left_alone_and_what_is_missing_is_written(tmp_path):
    manifest = make_videos(tmp_path / "in")
    whole, part = tmp_path / "whole", tmp_path / "part"
    write_dataset(whole, [manifest_source(manifest)], name="mine", records_per_shard=2)
    # Begun without Beam, and stopped after the first of three shards.
    shards = plan.make_plan([manifest_source(manifest)], OPTIONS)
    writer = written_by_beam.DatasetWriter(part, name="mine", settings=shards.settings)
    job = shards.jobs[0]
    written_by_beam.write_shard(part, job.split, job.index, job.total, plan.records(job))
    before = (part / shard_name("train", 0, 3)).stat().st_mtime_ns
    assert writer.missing("train", 3) == [1, 2]
    assert by_beam(part, manifest_source(manifest), name="mine")["shards"] == 2
    assert (part / shard_name("train", 0, 3)).stat().st_mtime_ns == before
    assert contents(part) == contents(whole)


def test_an_element_that_comes_twice_is_written_once(tmp_path):
    manifest = make_videos(tmp_path / "in")
    shards = plan.make_plan([manifest_source(manifest)], OPTIONS)
    for job in shards.jobs:
        name = shard_name(job.split, job.index, job.total)
        Files(tmp_path / "out").write(f"parts/{name}.plan", plan.plan_text(job))
    write = written_by_beam._WriteShard(str(tmp_path / "out"))
    write.process(("train", 1, 3))
    found = tmp_path / "out" / shard_name("train", 1, 3)
    first = found.stat().st_mtime_ns, found.read_bytes()
    write.process(("train", 1, 3))
    assert (found.stat().st_mtime_ns, found.read_bytes()) == first
    (tmp_path / "out" / part_name(found.name)).unlink()  # as if stopped between the two
    write.process(("train", 1, 3))
    assert found.read_bytes() == first[1]
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_everything_in_a_bucket(tmp_path, bucket):
    manifest = make_videos(bucket / "in")
    write_dataset(tmp_path / "a", [manifest_source(manifest)], name="mine", records_per_shard=2)
    by_beam("bucket://out", manifest_source("bucket://in/clips.jsonl"), name="mine")
    local, remote = Dataset.open(tmp_path / "a"), Dataset.open(bucket / "out")
    assert remote.split("train").digest == local.split("train").digest
    assert (bucket / "out" / "rejects.jsonl").read_bytes() == (
        tmp_path / "a" / "rejects.jsonl"
    ).read_bytes()
    assert not [p for p in bucket.rglob("*") if "parts" in p.parts and p.is_file()]
    assert not list(bucket.rglob("*.tmp"))
    # The same command finds it finished; another input is refused.
    assert by_beam("bucket://out", manifest_source("bucket://in/clips.jsonl"), name="mine") == {}
    manifest.write_text('{"video": "0.mp4"}\n')
    with pytest.raises(UserError, match="bucket://out holds a dataset made with other settings"):
        by_beam("bucket://out", manifest_source("bucket://in/clips.jsonl"), name="mine")


def test_everything_in_cloud_storage_by_its_own_client(tmp_path, monkeypatch):
    pytest.importorskip("google.cloud.storage")
    from apache_beam.io.gcp import gcsio

    anonymous = gcsio.create_storage_client
    monkeypatch.setattr(gcsio, "create_storage_client", lambda options: anonymous(options, False))
    manifest = make_videos(tmp_path / "in")
    write_dataset(tmp_path / "a", [manifest_source(manifest)], name="mine", records_per_shard=2)
    source = manifest_source("gs://videos/in/clips.jsonl")
    with gcs_server.serving() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        for path in (tmp_path / "in").iterdir():
            server.objects["videos", f"in/{path.name}"] = path.read_bytes()
        counters = by_beam("gs://data/sets/mine", source)
        assert counters["records"] == 3 and counters["rejects"] == 3
        assert by_beam("gs://data/sets/mine", source) == {}
        with pytest.raises(UserError, match="gs://videos/none.csv cannot be read"):
            by_beam("gs://data/sets/other", manifest_source("gs://videos/none.csv"))
        found = {name: data for (bucket, name), data in server.objects.items() if bucket == "data"}
        _array_record_reads_it(server, monkeypatch, tmp_path / "a")
    assert set(found) == {f"sets/mine/{name}" for name in contents(tmp_path / "a")}
    for name, data in contents(tmp_path / "a").items():
        if name != "dataset.json":  # has other settings: videos in buckets are not stamped
            assert found[f"sets/mine/{name}"] == data


def _array_record_reads_it(server, monkeypatch, directory):
    """As BUILD.md says: not what the library does, but what ArrayRecord could."""
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server.url)
    name = shard_name("train", 0, 3)
    options = "readahead_buffer_size:0,max_parallelism:0"
    remote = array_record_module.ArrayRecordReader(f"gs://data/sets/mine/{name}", options)
    local = array_record_module.ArrayRecordReader(str(directory / name), options)
    assert remote.num_records() == local.num_records() == 2
    for index in range(2):
        before = len(server.requests)
        assert remote.read([index]) == local.read([index])
        assert len(server.requests) == before + 1
    remote.close()


def test_tars_and_single_videos_in_a_bucket(tmp_path, bucket):
    data = write_video(bucket / "in" / "0.mp4")
    with tarfile.open(bucket / "in" / "a.tar", "w") as tar:
        tar.add(bucket / "in" / "0.mp4", "0.mp4")
    manifest = tmp_path / "clips.csv"
    manifest.write_text("video,caption\nbucket://in/0.mp4,one\n")
    by_beam(
        tmp_path / "out",
        manifest_source(manifest),
        plan.Source("test", "webdataset", "bucket://in/*.tar"),
    )
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.split("train").record(0).video == data
    assert dataset.split("train").record(0).key == "bucket://in/0.mp4"
    assert dataset.split("test").record(0).key == "a/0"


def test_killed_and_started_again_it_ends_with_the_same_directory(tmp_path):
    for i in range(40):
        write_video(tmp_path / "in" / f"{i}.mp4", frames=60, size=(160, 120))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    source = plan.Source("train", "folder", str(tmp_path / "in"))
    write_dataset(whole, [source], name="mine", records_per_shard=2, transcode_size=96)
    command = [sys.executable, "-m", "experiments.prepare_data", "--output", str(killed)]
    command += ["--folder", source.location, "--name", "mine", "--records-per-shard", "2"]
    command += ["--transcode-size", "96", "--runner", RUNNER]
    for shards in (3, 8):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(killed.glob("*.array_record"))) < shards and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert not (killed / "dataset.json").exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert contents(killed) == contents(whole)


def test_the_command_and_too_many_rejects(tmp_path, capsys):
    manifest = make_videos(tmp_path / "in")
    arguments = ["--output", str(tmp_path / "out"), "--manifest", str(manifest)]
    arguments += ["--runner", RUNNER]
    strict = [*arguments, "--max-rejects", "0.1"]
    assert cli.exit_code(lambda: prepare_data.main(strict)) == 2
    assert "3 of 6 clips were rejected" in capsys.readouterr().err
    assert cli.exit_code(lambda: prepare_data.main(arguments)) == 0
    assert "train 3 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--folder", "gs-less://x", "--output", "o"], "is an address; list its videos"),
        (["--manifest", "x.csv", "--output", "none://o"], "kind that this installation"),
        (["--manifest", "x.csv", "--output", "o", "--processes", "2"], "give Beam's own options"),
        (["--manifest", "x.csv", "--output", "o", "--", "fast"], "no option of a runner"),
        (["--manifest", "x.csv"], "--output is missing"),
        (["--runner", "NoRunner"], "--runner is for own videos"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    arguments = ["--runner", RUNNER, *arguments]
    assert cli.exit_code(lambda: prepare_data.main(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said
    assert not list(tmp_path.iterdir())


def test_a_pipeline_that_fails_says_why_and_goes_on_later(tmp_path, monkeypatch):
    manifest = make_videos(tmp_path / "in")
    source = manifest_source(manifest)
    with pytest.raises(UserError, match="Unexpected pipeline runner"):
        written_by_beam.write_dataset(str(tmp_path / "out"), [source], OPTIONS, runner="NoRunner")
    real = written_by_beam.write_shard

    def full(directory, split, index, total, records):
        if index == 1:
            raise UserError("cannot write it: No space left on device")
        return real(directory, split, index, total, records)

    monkeypatch.setattr(written_by_beam, "write_shard", full)
    with pytest.raises(UserError, match="No space left on device"):
        by_beam(tmp_path / "out", source)
    monkeypatch.undo()
    by_beam(tmp_path / "out", source)
    shutil.rmtree(tmp_path / "in")
    assert len(Dataset.open(tmp_path / "out").split("train")) == 3
