"""What a manifest and a folder say becomes records; what they say wrongly is named by line."""

import json
import re

import pytest
from video_files import write_picture, write_video

from jepa.data import plan, schema
from jepa.data.build import Source, write_dataset
from jepa.data.dataset import Dataset
from jepa.data.entries import make_record
from jepa.data.manifest import read_folder, read_manifest
from jepa.data.writer import Reject
from jepa.errors import UserError


def jsonl(tmp_path, *rows, name="clips.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def only(path):
    (entry,), _ = read_manifest(path)
    return entry


def test_every_column_of_jsonl(tmp_path):
    row = {
        "video": "sub/a.mp4",
        "key": "k",
        "start": "0:01:02.5",
        "end": 70,
        "caption": " a ball ",
        "caption.motion": "it falls",
        "captions": ["more", {"text": "most", "level": "full", "id": "x"}],
        "query": "Colour?",
        "answer": "red",
        "candidates": ["red", "blue"],
        "kind": "colour",
        "questions": [{"query": "Where?", "answer": "left"}],
        "labels": {"shape": "ball"},
        "label.size": 3,
        "group": "g",
    }
    entry = only(jsonl(tmp_path, row))
    assert entry.path == tmp_path / "sub" / "a.mp4"
    assert (entry.key, entry.source, entry.start, entry.end) == ("k", "sub/a.mp4", 62.5, 70.0)
    assert [(c.text, c.level) for c in entry.captions] == [
        ("a ball", ""),
        ("it falls", "motion"),
        ("more", ""),
        ("most", "full"),
    ]
    assert entry.captions[3].id == "x"
    assert entry.questions[0] == schema.Question("q0", "Colour?", "red", "colour", ("red", "blue"))
    assert entry.questions[1] == schema.Question("q1", "Where?", "left")
    assert (entry.labels, entry.group) == ({"shape": "ball", "size": "3"}, "g")


def test_csv_says_the_same_as_jsonl(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_text(
        "\ufeffvideo,start,end,caption,captions,query,answer,candidates,label.colour,extra\r\n"
        'a.mp4,1,2.5,"a ball, red","[""more""]",Colour?,red,"[""red"",""blue""]",red,x\r\n',
        encoding="utf-8",
    )
    (entry,), unknown = read_manifest(path)
    assert unknown == ["extra"]
    row = {"video": "a.mp4", "start": 1, "end": 2.5, "caption": "a ball, red", "query": "Colour?"}
    row |= {"captions": ["more"], "answer": "red", "candidates": ["red", "blue"]}
    other = only(jsonl(tmp_path, row | {"label.colour": "red"}))
    assert (entry.key, entry.captions, entry.questions, entry.labels, entry.start, entry.end) == (
        other.key,
        other.captions,
        other.questions,
        other.labels,
        other.start,
        other.end,
    )
    assert entry.key == "a.mp4@1-2.5"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,caption\na.mp4,x\n"),
        ("a.tsv", "path\tcaption\na.mp4\tx\n"),
        ("a.jsonl", '{"path": "a.mp4", "caption": "x"}\n'),
    ],
)
def test_a_missing_video_column_names_the_columns_found(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} has no column 'video' \(found: path, caption\)"):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"video": "a", "caption": "  "}, "caption is empty"),
        ({"video": "a", "captions": ["x", ""]}, "captions is empty"),
        ({"video": "a", "query": "What?"}, "answer is empty"),
        ({"video": "a", "query": "What?", "answer": "b", "candidates": ["c"]}, "not among"),
        ({"video": "a", "start": "soon"}, "start is 'soon'"),
        ({"video": "a", "start": -1}, "start is -1"),
        ({"video": "a", "end": "nan"}, "end is 'nan'"),
        ({"video": "a", "start": 3, "end": 2}, r"end \(2.0 s\) does not come after start"),
        ({"video": "a", "captions": [{"txt": "x"}]}, "unknown fields"),
        ({"video": "a", "caption": 3}, "instead of text"),
        ({"video": "a", "labels": ["x"]}, "instead of an object"),
        ({"video": ""}, "video is empty"),
        ("{broken", "is not JSON"),
        ("[1]", "is not a JSON object"),
    ],
)
def test_a_bad_line_is_rejected_by_number(tmp_path, row, words):
    entries, _ = read_manifest(jsonl(tmp_path, {"video": "good.mp4"}, row))
    (reject,) = [entry for entry in entries if isinstance(entry, Reject)]
    assert reject.name == "clips.jsonl line 2"
    assert re.search(words, reject.reason), reject.reason
    assert len(entries) == 2


def test_csv_rows_that_are_bad(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "video,caption,query,answer\n"
        "a.mp4,x,,\n"  # an empty question is none
        "b.mp4,,Colour?,red\n"  # and an empty caption beside a question neither
        "c.mp4,,,\n"
        "d.mp4,x\n"
        "e.mp4,x,,,,\n"
        ",x,,\n"
    )
    entries, _ = read_manifest(path)
    good = [entry.source for entry in entries if not isinstance(entry, Reject)]
    assert good == ["a.mp4", "b.mp4"]
    assert [(e.name, e.reason) for e in entries if isinstance(e, Reject)] == [
        ("a.csv line 4", "caption is empty"),
        ("a.csv line 5", "does not have the 4 cells of the header"),
        ("a.csv line 6", "does not have the 4 cells of the header"),
        ("a.csv line 7", "video is empty"),
    ]


def test_lines_about_one_clip_are_joined(tmp_path):
    path = jsonl(
        tmp_path,
        {"video": "a.mp4", "caption": "one", "labels": {"x": "1"}},
        {"video": "b.mp4", "caption": "other"},
        {"video": "a.mp4", "caption": "two", "query": "q", "answer": "y"},
        {"video": "a.mp4", "caption": "one"},
        {"video": "a.mp4", "start": 1, "caption": "a part of it"},
    )
    entries, _ = read_manifest(path)
    assert [entry.key for entry in entries] == ["a.mp4", "b.mp4", "a.mp4@1-"]
    assert [caption.text for caption in entries[0].captions] == ["one", "two"]
    assert len({caption.id for caption in entries[0].captions}) == 2
    assert len(entries[0].questions) == 1


def test_a_key_of_two_videos_is_rejected(tmp_path):
    path = jsonl(tmp_path, {"video": "a.mp4", "key": "k"}, {"video": "b.mp4", "key": "k"})
    entries, _ = read_manifest(path)
    assert entries[1] == Reject("clips.jsonl line 2", "its key 'k' is that of clips.jsonl line 1")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "must end in"),
        ("a.jsonl", b"", "has no line"),
        ("a.csv", b"video\n", "has no line"),
        ("a.csv", b"video\n\xff\xfe\n", "UTF-8"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_manifest(tmp_path / name)


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_manifest(tmp_path / "none.csv")


def test_folder(tmp_path):
    write_video(tmp_path / "jump" / "b.mp4")
    write_video(tmp_path / "run" / "a.MP4")
    write_video(tmp_path / ".hidden" / "x.mp4")
    write_picture(tmp_path / "p.png")
    (tmp_path / "jump" / "b.txt").write_text("she jumps\n\nup she goes\nshe jumps\n")
    (tmp_path / "notes.md").write_text("not a video")
    entries = read_folder(tmp_path, label="action")
    assert [(e.key, e.labels) for e in entries] == [
        ("jump/b.mp4", {"action": "jump"}),
        ("p.png", {}),
        ("run/a.MP4", {"action": "run"}),
    ]
    assert [c.text for c in entries[0].captions] == ["she jumps", "up she goes"]
    (tmp_path / "jump" / "b.txt").write_text("\n")
    assert read_folder(tmp_path)[-1] == Reject(
        "jump/b.mp4", "b.txt is empty; write a caption or delete it"
    )


def test_folder_without_videos(tmp_path):
    with pytest.raises(UserError, match="holds no video"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        read_folder(tmp_path / "none")


def test_the_encoded_bytes_are_kept_with_the_span(tmp_path):
    data = write_video(tmp_path / "a.mp4")
    record = make_record(only(jsonl(tmp_path, {"video": "a.mp4", "start": 0.25, "end": 0.75})))
    assert (record.video, record.start, record.end, record.frames) == (data, 0.25, 0.75, 8)
    small = make_record(only(tmp_path / "clips.jsonl"), transcode_size=16)
    assert (small.start, small.end, small.frames, small.height) == (None, None, 4, 16)


def test_videos_that_are_refused(tmp_path):
    write_video(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:20])
    path = jsonl(
        tmp_path,
        {"video": "none.mp4"},
        {"video": "bad.mp4"},
        {"video": "a.mp4", "start": 1.0},
        {"video": "a.mp4", "end": 2.5},
    )
    rejects = [make_record(entry) for entry in read_manifest(path)[0]]
    assert [reject.name for reject in rejects] == [f"clips.jsonl line {i}" for i in range(1, 5)]
    reasons = [reject.reason for reject in rejects]
    assert reasons[0] == "none.mp4: No such file or directory"
    assert reasons[1].startswith("bad.mp4: cannot be decoded")
    assert reasons[2] == "a.mp4: start is 1.0 s, and the video has 1.00 s"
    assert reasons[3] == "a.mp4: end is 2.5 s, and the video has 1.00 s"


def rows_with_bad(tmp_path, good, bad):
    write_video(tmp_path / "a.mp4")
    rows = [{"video": "a.mp4", "key": f"g{i}", "caption": f"clip {i}"} for i in range(good)]
    # One video, many keys: the same clip under several names is the user's business.
    rows += [{"video": f"none{i}.mp4"} for i in range(bad)]
    return jsonl(tmp_path, *rows)


@pytest.mark.parametrize("processes", [1, 2])
def test_dataset_of_a_manifest(tmp_path, processes):
    path = rows_with_bad(tmp_path, good=5, bad=2)
    out = tmp_path / "out"
    write_dataset(out, [Source("train", "manifest", str(path))], records_per_shard=2,
                  processes=processes)  # fmt: skip
    split = Dataset.open(out).split("train")
    assert [split.record(i).key for i in range(len(split))] == [f"g{i}" for i in range(5)]
    assert split.texts() == [f"clip {i}" for i in range(5)]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [r["name"] for r in rejects] == ["clips.jsonl line 6", "clips.jsonl line 7"]


def test_too_many_rejects_stop_and_are_listed(tmp_path):
    path = rows_with_bad(tmp_path, good=2, bad=2)
    source = [Source("train", "manifest", str(path))]
    out = tmp_path / "out"
    with pytest.raises(UserError, match="2 of 4 clips were rejected, more than --max-rejects=0.4"):
        write_dataset(out, source, max_rejects=0.4)
    assert len((out / "rejects.jsonl").read_text().splitlines()) == 2
    assert not (out / "dataset.json").exists()
    write_dataset(out, source, max_rejects=0.5)
    assert len(Dataset.open(out).split("train")) == 2


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    path = rows_with_bad(tmp_path, good=4, bad=0)
    source = [Source("train", "manifest", str(path))]
    real, made = plan.make_record, []

    def stops(entry, size):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(entry.key)
        return real(entry, size)

    monkeypatch.setattr(plan, "make_record", stops)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "out", source, records_per_shard=2)
    made.clear()
    write_dataset(tmp_path / "out", source, records_per_shard=2)
    assert made == ["g2", "g3"]
    made.clear()
    write_dataset(tmp_path / "out", source, records_per_shard=2)
    assert made == []


def test_changed_input_is_another_dataset(tmp_path):
    path = rows_with_bad(tmp_path, good=2, bad=0)
    source = [Source("train", "manifest", str(path))]
    write_dataset(tmp_path / "out", source)
    write_video(tmp_path / "a.mp4", frames=9)
    with pytest.raises(UserError, match="other settings .*inputs.*delete it"):
        write_dataset(tmp_path / "out", source)


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        ([], {}, "no videos were named"),
        ([Source("a", "folder", "x"), Source("a", "folder", "y")], {}, "'a' has 2 sources"),
        ([Source("a-b", "folder", "x")], {}, "split 'a-b'"),
        ([Source("a", "zip", "x")], {}, "source kind 'zip'"),
        ([Source("a", "folder", "x")], {"records_per_shard": 0}, "--records-per-shard is 0"),
        ([Source("a", "folder", "x")], {"max_rejects": 2}, "--max-rejects is 2"),
        ([Source("a", "folder", "x")], {"transcode_size": 1}, "--transcode-size is 1"),
    ],
)
def test_bad_settings(tmp_path, sources, options, words):
    with pytest.raises(UserError, match=words):
        write_dataset(tmp_path / "out", sources, **options)
    assert not (tmp_path / "out").exists()


def test_the_digest_of_many_is_that_of_one_list(tmp_path):
    manifest = tmp_path / "clips.csv"
    manifest.write_text("video,caption\n" + "".join(f"{i}.mp4,ü {i}\n" for i in range(2500)))
    found, _ = read_manifest(manifest)
    whole = plan._digest([plan._describe(item) for item in found])
    assert plan._digest_of_many(found) == whole
    assert plan._digest_of_many(found[:7]) != whole
    assert plan._digest_of_many([]) == plan._digest([])


def test_a_video_at_an_address_is_rejected_with_the_way_to_read_it(tmp_path):
    (tmp_path / "clips.csv").write_text("video\ngs://b/a.mp4\n")
    (entry,), _ = read_manifest(tmp_path / "clips.csv")
    reject = make_record(entry)
    assert isinstance(reject, Reject)
    assert reject.reason == "gs://b/a.mp4: is an address, which only --runner reads; name a path"
