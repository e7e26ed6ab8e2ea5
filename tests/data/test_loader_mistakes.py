"""What is unreadable or wrong: replaced and counted, or said in one sentence."""

import pytest
from loading_helpers import config, numbers, record, rows_of, same, take, write

from jepa.batch_part import BatchPart
from jepa.data.config import DataConfig, default_data_config
from jepa.data.loader import make_train_loader
from jepa.errors import UserError

RECORDS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i, count=4) for i in range(4)]
    return write(tmp_path_factory.mktemp("data") / "set", {"train": records})


def damaged(number):
    whole = record(number)
    return record(number, video=whole.video[: len(whole.video) // 2])


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_unreadable_videos_are_replaced_alike_everywhere_counted_and_logged(
    tmp_path, cache, caplog
):
    records = [damaged(i) if i in (3, 11) else record(i) for i in range(RECORDS)]
    path = write(tmp_path / "d", {"train": records})
    keys = config(path, cache=cache, max_bad_fraction=0.1)
    loader = make_train_loader(keys, global_batch=20, seed=0)
    batches = take(loader, 3)
    found = [n for batch in batches for n in numbers(path, batch)]
    assert not {3, 11} & set(found) and len(found) == 60
    assert len(loader.unreadable) == 2
    assert "clip-0003" in caplog.text and caplog.text.count("clip-0003") == 1
    half = make_train_loader(keys, global_batch=20, seed=0, part=BatchPart((1,), 2))
    same(rows_of(batches[0], slice(10, 20)), take(half, 1)[0])


def test_too_many_unreadable_videos_stop_the_run(tmp_path):
    records = [damaged(i) if i < 2 else record(i) for i in range(RECORDS)]
    path = write(tmp_path / "d", {"train": records})
    for cache in ("none", "memory"):
        with pytest.raises(UserError, match="clip-000.*max_bad_fraction|max_bad.*clip-000"):
            take(make_train_loader(config(path, cache=cache), global_batch=20, seed=0), 1)


def test_nothing_but_unreadable_videos(tmp_path):
    path = write(tmp_path / "d", {"train": [damaged(i) for i in range(3)]})
    with pytest.raises(UserError, match="cannot be decoded"):
        take(make_train_loader(config(path, max_bad_fraction=0.9), global_batch=2, seed=0), 1)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"sise": 3}, "sise"),
        ({"frames": 0}, "frames"),
        ({"pixels": "bgr"}, "pixels"),
        ({"pixels": "yuv420", "size": 33}, "size"),
        ({"tasks": {"captions": 1}}, "tasks"),
        ({"mixture": (("a", 1.0),)}, "path"),
        ({"cache": "memory", "workers": 1}, "workers"),
        ({"tokenizer": "/nowhere"}, "tokenizer"),
        ({"text_features": "/nowhere"}, "text_features"),
        ({"split": "test"}, "test"),
        ({"path": "/nowhere"}, "nowhere"),
        ({"frames": "8"}, "frames is '8'; it must be an integer"),
        ({"frames": 8.0}, "frames is 8.0; it must be an integer"),
        ({"frames": True}, "frames is True"),
        ({"fps": "fast"}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"flip": 1}, "flip is 1; it must be True or False"),
        ({"size": None}, "size"),
        ({"pixels": None}, "pixels"),
        ({"path": 3}, "path"),
        ({"crop_scale": (0.5,)}, "crop_scale is .*two numbers"),
        ({"crop_ratio": 1.0}, "crop_ratio"),
        ({"caption_levels": (1,)}, "caption_levels"),
        ({"caption_weights": {"full": 0.0}}, "caption_weights .* must be above 0"),
        ({"caption_weights": ("full",)}, "caption_weights"),
        ({"mixture": (("a", 1.0, 2.0),)}, "mixture"),
        ({"mixture": ("a",)}, "mixture"),
        ({"mixture": (("a", "b"),)}, "mixture"),
        ({"tasks": ("caption",)}, "tasks"),
        ({"tasks": {"caption": "often"}}, "tasks"),
        ({"max_bad_fraction": "1%"}, "max_bad_fraction"),
    ],
)
def test_mistakes_are_named(data, keys, named):
    with pytest.raises(UserError, match=named):
        make_train_loader(config(data, **keys), global_batch=8, seed=0)


def test_hosts_must_divide_the_batch(data):
    with pytest.raises(UserError, match="global_batch"):
        make_train_loader(config(data), global_batch=8, seed=0, part=BatchPart((0,), 3))


def test_defaults_parse_and_take_flags():
    values = default_data_config()
    values.path = "somewhere"
    values.fps = 4.0
    values.tasks.question = 0.0
    parsed = DataConfig.parse(values)
    assert parsed.fps == 4.0 and parsed.text_features is None and parsed.tasks["question"] == 0.0
