"""Train batches: pure functions of (seed, step), whatever the hosts, restarts and caches."""

import collections
import json
import multiprocessing
import os
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from loading_helpers import config, numbers, record, rows_of, same, take, words, write

from jepa.batch_part import BatchPart
from jepa.data import loader as loaders
from jepa.data import order as order_module
from jepa.data.cache import TextFeatures
from jepa.data.config import DataConfig
from jepa.data.loader import make_train_loader
from jepa.data.order import Order
from jepa.errors import UserError

RECORDS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i) for i in range(RECORDS)]
    return write(tmp_path_factory.mktemp("data") / "set", {"train": records})


FULL = {"crop": "random_resized", "flip": True, "fps": 6.0}


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("keys", [{}, {**FULL, "pixels": "yuv420"}, {"cache": "memory"}])
def test_hosts_make_parts_of_the_same_global_batch(data, hosts, keys):
    whole = take(make_train_loader(config(data, **keys), global_batch=8, seed=3), 4)
    parts = [
        take(
            make_train_loader(
                config(data, **keys), global_batch=8, seed=3, part=BatchPart((h,), hosts)
            ),
            4,
        )
        for h in range(hosts)
    ]
    for step in range(4):
        rows = 8 // hosts
        for host in range(hosts):
            part = slice(host * rows, (host + 1) * rows)
            same(rows_of(whole[step], part), parts[host][step])


def test_a_restart_goes_on_with_the_same_batches_on_any_number_of_hosts(data):
    whole = take(make_train_loader(config(data), global_batch=8, seed=3), 6)
    first = make_train_loader(config(data), global_batch=8, seed=3)
    take(first, 3)
    state = first.state()
    assert state["position"] == 24 and json.loads(json.dumps(state)) == state
    second = make_train_loader(config(data), global_batch=8, seed=3, part=BatchPart((1,), 2))
    second.restore(state)
    for step, batch in zip(range(3, 6), take(second, 3), strict=True):
        same(rows_of(whole[step], slice(4, 8)), batch)


def test_state_counts_what_was_handed_out_not_what_was_read_ahead(data):
    loader = make_train_loader(config(data, threads=2), global_batch=4, seed=0)
    before = loader.state()
    take(loader, 1)
    # `position` is the one number that moves.
    assert before["position"] == 0 and loader.state() == {**before, "position": 4}


def test_a_run_does_not_go_on_with_another_dataset(tmp_path, data):
    state = make_train_loader(config(data), global_batch=4, seed=0).state()
    other = write(tmp_path / "other", {"train": [record(i) for i in range(1, RECORDS + 1)]})
    loader = make_train_loader(config(other), global_batch=4, seed=0)
    with pytest.raises(UserError, match=f"{other} has changed.*--workdir"):
        loader.restore(state)
    mixture = config("", mixture=((str(data), 1.0), (str(other), 1.0)), tokenizer="minilm")
    loader = make_train_loader(mixture, global_batch=4, seed=0)
    with pytest.raises(UserError, match="began with 1 datasets"):
        loader.restore(state)
    # Where it lies is of no matter, and older states do not say what they come from.
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    for old in (state, {"position": 4}):
        make_train_loader(config(moved), global_batch=4, seed=0).restore(old)


def test_the_loader_says_how_large_its_vocabularies_are(data, tmp_path):
    import tokenizers

    own = tokenizers.Tokenizer.from_file(str(data / "tokenizer.json")).get_vocab_size()
    keys = config(data, tokenizer="minilm", query_tokenizer="dataset")
    loader = make_train_loader(keys, global_batch=4, seed=0)
    assert loader.vocabulary == {"query": own, "text": 30522}
    TextFeatures.write(tmp_path / "f", ["a"], np.ones((1, 2), np.float32), "")
    keys = config(data, text_features=str(tmp_path / "f"))
    loader = make_train_loader(keys, global_batch=4, seed=0)
    assert loader.vocabulary == {"query": own, "text": None}


def test_a_host_with_many_cores_reads_eight_batches_ahead_unless_asked_for_more(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 192)
    assert DataConfig.parse({"path": "a"}).reading_threads == 8
    assert DataConfig.parse({"path": "a", "threads": 20}).reading_threads == 20
    assert DataConfig.parse({"path": "a", "cache": "memory"}).reading_threads == 1


def test_worker_processes_change_nothing_nor_does_killing_one(data, caplog):
    keys = {"frames": 2, "size": 16}
    others = multiprocessing.active_children()  # of tests before
    alone = take(make_train_loader(config(data, **keys), global_batch=4, seed=3), 16)
    with make_train_loader(config(data, workers=2, **keys), global_batch=4, seed=3) as loader:
        got = [next(loader), next(loader)]
        next(one for one in multiprocessing.active_children() if one not in others).kill()
        got += [next(loader) for _ in range(14)]  # more than were read ahead
    for one, other in zip(alone, got, strict=True):
        same(one, other)
    assert "a data worker was killed" in caplog.text


def test_workers_that_are_killed_again_and_again(data, monkeypatch):
    def start():
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9.")

    loader = make_train_loader(config(data, workers=2), global_batch=4, seed=1)
    monkeypatch.setattr(loader, "_start", start)
    with pytest.raises(UserError, match="3 times in a row.*data.workers=2"):
        next(loader)


def test_a_worker_that_hangs_does_not_hold_the_end(monkeypatch):
    monkeypatch.setattr(loaders, "_CLOSING", 0.2)
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    # As Grain's, which waits for the thread that waits for the worker.
    loaders._close(SimpleNamespace(close=worker.join))
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


def test_the_records_of_a_batch_are_named(data):
    with make_train_loader(config(data), global_batch=4, seed=1) as loader:
        keys = [key for _ in range(RECORDS // 4) for key in (next(loader), loader.record_keys())[1]]
    assert len(set(keys)) == RECORDS


def test_another_seed_gives_other_batches(data):
    one, other = (
        numbers(data, take(make_train_loader(config(data), global_batch=20, seed=s), 1)[0])
        for s in (0, 1)
    )
    assert one != other


def test_every_record_comes_once_an_epoch_in_another_order_each(data):
    batches = take(make_train_loader(config(data), global_batch=5, seed=0), 8)
    order = [number for batch in batches for number in numbers(data, batch)]
    assert sorted(order[:RECORDS]) == sorted(order[RECORDS:]) == list(range(RECORDS))
    assert order[:RECORDS] != order[RECORDS:]


@pytest.mark.parametrize(("size", "small"), [(1, 1000), (7, 1000), (300, 1000), (3000, 1000)])
def test_the_order_visits_each_record_once_an_epoch_at_any_size(monkeypatch, size, small):
    monkeypatch.setattr(order_module, "_SMALL", small)
    order = Order([size], [1.0], seed=5)
    epochs = 4
    sets, found = order(np.arange(epochs * size))
    assert (sets == 0).all()
    found = found.reshape(epochs, size)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(size), (epochs, 1)))
    if size > 1:
        assert (found[0] != found[1]).any()
    # Neighbours in the order are not neighbours in the dataset.
    if size >= 300:
        assert abs(np.corrcoef(found[0], np.arange(size))[0, 1]) < 0.2
        assert (np.abs(np.diff(found[0])) == 1).mean() < 0.03
    middle = epochs * size // 2
    np.testing.assert_array_equal(order(np.array([middle]))[1], found.reshape(-1)[[middle]])


def test_a_mixture_draws_by_weight_and_each_record_of_a_set_once_an_epoch(tmp_path, data):
    other = write(
        tmp_path / "other",
        {"train": [record(i, captions=(), size=48) for i in range(100, 110)]},
    )
    keys = config(None, mixture=((str(data), 3.0), (str(other), 1.0)), frames=1)
    keys.pop("path")
    keys["tokenizer"] = str(_joint(tmp_path, data, other))
    loader = make_train_loader(keys, global_batch=8, seed=0)
    batches = take(loader, 10)
    found = [n for batch in batches for n in numbers(tmp_path, batch)]
    assert sum(n >= 100 for n in found) == 20
    assert collections.Counter(n for n in found if n >= 100) == dict.fromkeys(range(100, 110), 2)
    assert collections.Counter(n for n in found if n < 100) == dict.fromkeys(range(RECORDS), 3)


def _joint(directory, *sets):
    from jepa.data.dataset import Dataset
    from jepa.data.vocabulary import train_tokenizer

    texts = [t for s in sets for t in Dataset.open(s).texts() + Dataset.open(s).queries()]
    path = directory / "tokenizer.json"
    path.write_text(train_tokenizer(texts))
    return path


def test_element_spec_is_what_comes(data):
    import jax

    for keys in ({}, {"pixels": "yuv420", "cache": "memory"}):
        loader = make_train_loader(
            config(data, **keys), global_batch=8, seed=0, part=BatchPart((0,), 2)
        )
        (batch,) = take(loader, 1)
        found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        assert found == loader.element_spec


def test_tasks_by_weight(data):
    def shares(tasks):
        (batch,) = take(make_train_loader(config(data, tasks=tasks), global_batch=64, seed=0), 1)
        return np.mean([q == "what happens ?" for q in words(data, batch["query"])])

    assert shares({"caption": 1.0}) == 1
    assert shares({"question": 1.0}) == 0
    assert 0.1 < shares({"caption": 1.0, "question": 2.0}) < 0.6


def test_captions_by_the_weight_of_their_level(data):
    def share(**keys):
        keys = config(data, tasks={"caption": 1.0}, frames=1, **keys)
        (batch,) = take(make_train_loader(keys, global_batch=256, seed=0), 1)
        return np.mean([target.endswith("moves") for target in words(data, batch["text"])])

    assert share() == pytest.approx(1 / 4, abs=0.08)
    assert share(caption_weights={"motion": 3.0}) == pytest.approx(3 / 6, abs=0.09)
    # Two full captions, each at half the weight of the others.
    assert share(caption_weights={"full": 0.5}) == pytest.approx(1 / 3, abs=0.09)


def test_answers_belong_to_their_questions_and_captions_to_the_levels_allowed(data):
    keys = config(data, caption_levels=("motion",), frames=1)
    for batch in take(make_train_loader(keys, global_batch=16, seed=0), 3):
        pairs = zip(words(data, batch["query"]), words(data, batch["text"]), strict=True)
        for query, target in pairs:
            if query == "what is it ?":
                assert target.startswith("it is")
            elif query == "which one ?":
                assert target.startswith("number")
            else:
                assert target.endswith("moves")


def test_without_questions_captions_and_the_reverse(tmp_path):
    records = [record(0, questions=()), record(1, captions=())]
    path = write(tmp_path / "d", {"train": records})
    for tasks in ({"caption": 1.0}, {"question": 1.0}):
        (batch,) = take(make_train_loader(config(path, tasks=tasks), global_batch=2, seed=0), 1)
        assert sorted(numbers(path, batch)) == [0, 1]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_record_without_text_is_named(tmp_path, workers):
    path = write(tmp_path / "d", {"train": [record(0), record(7, captions=(), questions=())]})
    with pytest.raises(UserError, match="clip-0007"):
        take(make_train_loader(config(path, workers=workers), global_batch=2, seed=0), 1)


def test_equal_texts_have_equal_hashes_and_others_other(data):
    batches = take(make_train_loader(config(data, frames=1), global_batch=20, seed=0), 5)
    seen = {}
    for batch in batches:
        for text, code in zip(words(data, batch["text"]), batch["text"]["hash"], strict=True):
            assert seen.setdefault(text, code) == code
    assert len(set(seen.values())) == len(seen) > 50


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"pixels": "yuv420", "fps": 4.0},
        {**FULL, "pixels": "rgb"},
        {**FULL, "pixels": "yuv420"},
        {"frame_control": "shuffled"},
    ],
)
def test_caches_give_the_same_batches_as_decoding(data, cache, keys):
    plain = take(make_train_loader(config(data, **keys), global_batch=8, seed=1), 3)
    # Twice, so that the second reads what the first wrote.
    for _ in range(2):
        loader = make_train_loader(config(data, cache=cache, **keys), global_batch=8, seed=1)
        for one, other in zip(plain, take(loader, 3), strict=True):
            same(one, other)


def test_a_disk_cache_is_read_not_made_again(data, monkeypatch):
    from jepa.data import decode

    keys = config(data, cache="disk", size=16)
    first = take(make_train_loader(keys, global_batch=8, seed=1), 1)

    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "decode_clip", refuse)
    same(first[0], take(make_train_loader(keys, global_batch=8, seed=1), 1)[0])


def test_frame_controls(data):
    def frames(control, **keys):
        loader = make_train_loader(
            config(data, frame_control=control, **keys), global_batch=8, seed=2
        )
        return take(loader, 1)[0]["video"]

    plain, single, shuffled = frames("none"), frames("single"), frames("shuffled")
    assert (np.diff(plain[..., 0].mean((2, 3)), axis=1) > 0).all()
    assert (single == single[:, :1]).all()
    assert {int(np.flatnonzero((plain[i] == single[i, 0]).all((1, 2, 3)))[0]) for i in range(8)}
    order = np.argsort(shuffled[..., 0].mean((2, 3)), axis=1)
    for row in range(8):
        np.testing.assert_array_equal(shuffled[row, order[row]], plain[row])
    assert (order != np.arange(4)).any()
    assert (frames("blank") == 128).all()
    blank = frames("blank", pixels="yuv420")
    assert (blank["y"] == 126).all() and (blank["uv"] == 128).all()


def test_pairs_of_a_clip_differ_and_stand_clip_by_clip(data):
    loader = make_train_loader(
        config(data, pairs_per_clip=2, tasks={"caption": 1.0, "question": 0.0}),
        global_batch=8,
        seed=0,
    )
    batch = next(loader)
    hashes = batch["text"]["hash"].reshape(8, 2)
    assert batch["query"]["ids"].shape[0] == 16 and np.all(hashes[:, 0] != hashes[:, 1])
    single = make_train_loader(
        config(data, tasks={"caption": 1.0, "question": 0.0}), global_batch=8, seed=0
    )
    np.testing.assert_array_equal(hashes[:, 0], next(single)["text"]["hash"])
