"""Prefetching changes when batches come, not which."""

import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jepa.data import prefetch as module
from jepa.data.prefetch import prefetch
from jepa.errors import Stalled


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    return NamedSharding(mesh, PartitionSpec("data"))


class Loader:
    def __init__(self, fail_at=None, end_at=None, seconds=0.0):
        self.step, self.fail_at, self.end_at, self.seconds = 0, fail_at, end_at, seconds

    def __iter__(self):
        return self

    def __next__(self):
        if self.step == self.fail_at:
            raise ValueError("no such clip")
        if self.step == self.end_at:
            raise StopIteration
        time.sleep(self.seconds)
        self.step += 1
        ones = np.ones((8, 3), np.int32)
        return {"video": ones * (self.step - 1), "text": {"hash": ones[:, 0]}}

    def state(self):
        return {"position": self.step}


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_batches_are_sharded_and_in_order(sharding):
    batches = prefetch(Loader(), sharding)
    for step in range(5):
        batch = next(batches)
        assert batch["video"].sharding == sharding and batch["text"]["hash"].shape == (8,)
        assert len(batch["video"].addressable_shards) == 4
        np.testing.assert_array_equal(batch["video"], step)
    batches.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_state_is_that_of_the_batch_handed_out(sharding, depth):
    loader = Loader()
    batches = prefetch(loader, sharding, depth=depth)
    assert batches.state() == {"position": 0}
    next(batches)
    wait_for(lambda: loader.step >= 1 + depth)
    assert batches.state() == {"position": 1}
    next(batches)
    assert batches.state() == {"position": 2}
    batches.close()
    # Bounded: one in each slot, and one in the hand that waits for a slot.
    assert loader.step <= 2 + depth + 1


def test_errors_come_in_their_turn_and_again(sharding):
    batches = prefetch(Loader(fail_at=2), sharding, depth=4)
    next(batches)
    next(batches)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such clip"):
            next(batches)
    batches.close()


def test_the_end(sharding):
    assert len(list(prefetch(Loader(end_at=3), sharding))) == 3


def test_waited_counts_and_resets(sharding):
    batches = prefetch(Loader(seconds=0.05), sharding)
    next(batches)
    next(batches)
    assert 0.04 < batches.waited() < 5
    assert batches.waited() == 0
    batches.close()


def test_close_ends_the_thread_whatever_it_does(sharding):
    before = threading.active_count()
    full = prefetch(Loader(), sharding, depth=1)
    busy = prefetch(Loader(seconds=0.1), sharding)
    for batches in (full, busy):
        batches.close()
        batches.close()
        with pytest.raises(StopIteration):
            next(batches)
    assert threading.active_count() <= before


class Hanging(Loader):
    """Gives one batch, and then waits for something that does not come."""

    def __init__(self, timeout=None):
        super().__init__()
        self.timeout, self.hold = timeout, threading.Event()

    def __next__(self):
        if self.step == 1:
            self.hold.wait()
        return super().__next__()


def test_a_loader_that_hangs_is_given_up(sharding, monkeypatch):
    monkeypatch.setattr(module, "_GIVE_UP", 0.1)
    loader = Hanging(timeout=0.3)
    batches = prefetch(loader, sharding)
    next(batches)
    start = time.monotonic()
    with pytest.raises(Stalled, match=r"data.timeout is 0.3"):
        next(batches)
    batches.close()
    assert time.monotonic() - start < 5
    loader.hold.set()


def test_a_run_that_is_told_to_stop_does_not_wait_for_a_batch(sharding):
    loader = Hanging()
    batches = prefetch(loader, sharding)
    assert batches.unless(lambda: False) is not None
    assert batches.unless(lambda: True) is None
    assert batches.state() == {"position": 1}
    loader.hold.set()
    assert batches.unless(lambda: False) is not None
    batches.close()
