"""WebDataset tars become records, and what is wrong in them is named by member."""

import gzip
import io
import json
import tarfile

import pytest
from video_files import write_picture, write_video

from jepa.data.build import Source, write_dataset
from jepa.data.dataset import Dataset
from jepa.data.webdataset import find_tars, read_tar
from jepa.data.writer import Reject
from jepa.errors import UserError


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "videos" / "a.mp4", frames=4)


def tar(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            data = data if isinstance(data, bytes) else data.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_samples(tmp_path, video):
    row = {"query": "Colour?", "answer": "red", "labels": {"colour": "red"}, "uploader": "me"}
    path = tar(
        tmp_path / "s.tar",
        ("x/0001.mp4", video),
        ("x/0001.txt", "a red ball\n"),
        ("x/0001.json", json.dumps(row)),
        ("x/0001.cls", "7"),
        ("._x", "macOS was here"),
        ("x/0002.mp4", video),
        ("y/0002.png", write_picture(tmp_path / "p.png")),
    )
    records = list(read_tar(path, "s"))
    assert [record.key for record in records] == ["s/x/0001", "s/x/0002", "s/y/0002"]
    assert records[0].video == video
    assert [caption.text for caption in records[0].captions] == ["a red ball"]
    assert (records[0].questions[0].answer, records[0].labels) == ("red", {"colour": "red"})
    assert [record.media for record in records] == ["video", "video", "image"]


def test_a_compressed_tar(tmp_path, video):
    path = tar(tmp_path / "s.tar", ("1.mp4", video))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert [record.key for record in read_tar(path, "s")] == ["s/1"]


def test_bad_samples_are_rejected_by_name(tmp_path, video):
    path = tar(
        tmp_path / "s.tar",
        ("good.mp4", video),
        ("empty.mp4", video),
        ("empty.txt", " "),
        ("json.mp4", video),
        ("json.json", "{"),
        ("list.mp4", video),
        ("list.json", "[]"),
        ("broken.mp4", video[: len(video) // 2]),
        ("lone.txt", "no video"),
        ("two.mp4", video),
        ("two.mkv", video),
        ("good.txt", "too late"),
    )
    found = list(read_tar(path, "s"))
    assert found[0].key == "s/good"
    rejects = {reject.name: reject.reason for reject in found[1:]}
    assert all(isinstance(reject, Reject) for reject in found[1:])
    for name, words in {
        "empty": "caption is empty",
        "json": "texts cannot be read",
        "list": "not an object",
        "broken": "truncated|decoded|no frame",
        "lone": "0 videos",
        "two": "2 videos",
        "good": "occurs twice",
    }.items():
        reason = rejects.pop(f"s.tar/{name}")
        assert any(word in reason for word in words.split("|")), (name, reason)
    assert not rejects


@pytest.mark.parametrize(
    ("beyond", "words"), [(700, "damaged from here on"), (100, "no end mark"), (0, "no end mark")]
)
def test_a_truncated_tar_keeps_what_came_before(tmp_path, video, beyond, words):
    path = tar(tmp_path / "s.tar", *((f"{i:02}.mp4", video) for i in range(20)))
    with tarfile.open(path) as file:
        header = file.getmember("12.mp4").offset
    path.write_bytes(path.read_bytes()[: header + beyond])
    *records, reject = read_tar(path, "s")
    assert isinstance(reject, Reject)
    assert words in reject.reason
    # The last whole sample is sure only once the next one begins, so it may be refused with it.
    assert [record.key for record in records][:11] == [f"s/{i:02}" for i in range(11)]
    assert len(records) in (11, 12)
    assert all(record.video == video for record in records)


def test_a_truncated_compressed_tar(tmp_path, video):
    path = tar(tmp_path / "s.tar", *((f"{i:02}.mp4", video) for i in range(20)))
    data = gzip.compress(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    assert "damaged" in list(read_tar(path, "s"))[-1].reason


def test_no_tar_at_all(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"hello" * 1000)
    (reject,) = read_tar(tmp_path / "s.tar", "s")
    assert reject.name == "s.tar/(first member)"
    with pytest.raises(UserError, match="names no .tar file"):
        find_tars(str(tmp_path / "none-*.tar"))


def test_dataset_of_tars(tmp_path, video):
    for folder in ("a", "b"):
        tar(tmp_path / folder / "s.tar", ("1.mp4", video), ("1.txt", f"in {folder}"))
    source = Source("train", "webdataset", str(tmp_path / "*" / "s.tar"))
    write_dataset(tmp_path / "out", [source], transcode_size=16)
    split = Dataset.open(tmp_path / "out").split("train")
    assert [split.record(i).key for i in range(len(split))] == ["a/s/1", "b/s/1"]
    assert split.record(0).height == 16
    assert split.texts() == ["in a", "in b"]
