"""Faults in one process, on the toy: NaN, a clock that jumps, a loader that hangs."""

import errno
import random
import time

import jax
import numpy as np
import pytest

from jepa.errors import Stalled, UserError
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import disk, loop, metrics
from tests.training import toy


def train(directory, loader, **overrides):
    made = configs.resolve(toy.config(train__save_every=4, train__log_every=1, **overrides))
    made.train.health_every = 0
    mesh = meshes.make_mesh(made.mesh, jax.devices()[:1])
    return loop.train(made, directory, method=toy.Toy(made), loader=loader, mesh=mesh)


def arrays(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def same(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


class Failing(toy.Loader):
    """Fails at a step, with the error of a reader that hangs."""

    def __next__(self):
        if self.next == 6:
            raise Stalled("no batch came within 5 s (data.timeout is 5)")
        return super().__next__()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"), toy.Loader(16, 3), train__steps=12)


def test_a_nan_in_a_batch_is_skipped_and_counted(tmp_path):
    result = train(tmp_path, toy.Loader(16, 3, bad_steps=(4, 9)), train__steps=12)
    assert result.finished and int(result.state.skipped) == 2
    assert all(np.isfinite(x).all() for x in arrays(result.state.params))
    assert int(result.state.step) == 12


def test_nan_for_many_steps_stops_with_the_last_good_checkpoint_named(tmp_path):
    bad = toy.Loader(16, 3, bad_steps=range(6, 100))
    with pytest.raises(UserError, match=r"3 steps in a row.*The last checkpoint is step 8\."):
        train(tmp_path, bad, train__steps=40, train__max_consecutive_skipped=3)
    # Its parameters are those of step 6, the last one that was finite: with good data it goes on.
    result = train(tmp_path, toy.Loader(16, 3), train__steps=40, train__max_consecutive_skipped=3)
    assert result.finished and int(result.state.skipped) == 2
    assert all(np.isfinite(x).all() for x in arrays(result.state))


def test_nothing_depends_on_what_the_clock_says(tmp_path, monkeypatch, undisturbed):
    drawn, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + drawn.uniform(-1, 1) * 3e7)
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    result = train(tmp_path, toy.Loader(16, 3), train__steps=12)
    same(result.state, undisturbed.state)
    assert 0 < result.goodput <= 1


def test_a_loader_that_hangs_loses_no_step(tmp_path, undisturbed):
    with pytest.raises(Stalled, match=r"data.timeout.*The last checkpoint is step 6\."):
        train(tmp_path, Failing(16, 3), train__steps=12)
    same(train(tmp_path, toy.Loader(16, 3), train__steps=12).state, undisturbed.state)


def test_a_full_disk_below_tensorboard_is_an_error_and_no_hang(tmp_path, monkeypatch):
    writer = metrics.make_writer(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    writer.flush()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - clu wraps it.
        for step in range(2, 40):
            writer.write_scalars(step, {"loss": 1.0})
        writer.flush()
    assert disk.is_full(caught.value)
