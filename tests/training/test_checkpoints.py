"""What a damaged, torn or unsaveable checkpoint does to a run."""

import errno
import logging
import math
import os
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jepa.errors import UserError
from jepa.parallel import mesh as meshes
from jepa.training import checkpoints as module
from jepa.training.checkpoints import Checkpoints
from jepa.training.state import TrainState

ROOT = Path(__file__).parents[2]


def state(value=0.0, mesh=None):
    mesh = mesh or meshes.make_mesh({"data": 2}, jax.devices()[:2])
    whole = NamedSharding(mesh, PartitionSpec())
    cut = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    count = jax.device_put(jnp.zeros((), jnp.int32), whole)
    kernel = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32) + value
    return TrainState(
        step=count,
        params={"kernel": jax.device_put(kernel, cut)},
        target_params=None,
        opt_state=(jax.device_put(np.full(3, value, np.float32), whole),),
        method_state={},
        skipped=count,
        skipped_in_a_row=count,
    )


def shapes(of):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


@pytest.fixture
def three(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoints", keep_last=3)
    for step in (1, 2, 3):
        saved.save(step, state(float(step)), {"next": step}, {"seed": 0})
    saved.wait()
    yield saved
    saved.close()


def biggest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_round_trip(three):
    restored = three.restore_latest(shapes(state()))
    assert (restored.step, restored.data) == (3, {"next": 3})
    jax.tree.map(np.testing.assert_array_equal, restored.state, state(3.0))


def test_restored_onto_another_mesh(three):
    mesh = meshes.make_mesh({"data": 2, "fsdp": 4})
    target = state(mesh=mesh)
    restored = three.restore_latest(shapes(target))
    jax.tree.map(np.testing.assert_array_equal, restored.state, state(3.0))
    assert restored.state.params["kernel"].sharding == target.params["kernel"].sharding


def truncate(directory):
    file = biggest_file(directory)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(directory):
    file = biggest_file(directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))


def empty(directory):
    for file in [p for p in directory.rglob("*") if p.is_file()]:
        file.unlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_damage_is_reported_and_the_one_before_is_used(three, damage, caplog):
    damage(three.directory / "3")
    with caplog.at_level(logging.WARNING, logger="jepa"):
        restored = three.restore_latest(shapes(state()))
    assert restored.step == 2
    jax.tree.map(np.testing.assert_array_equal, restored.state, state(2.0))
    assert "checkpoint 3" in caplog.text and "damaged" in caplog.text
    assert (three.directory.parent / "damaged" / "3").is_dir()
    three.save(3, state(3.5), {"next": 3}, {"seed": 0})  # the run comes by again
    three.wait()
    assert three.restore_latest(shapes(state())).step == 3


def test_altered_values_are_found(three):
    """An undamaged file with other numbers than were saved: only the fingerprint can tell."""
    got = module._fingerprint(state(1.0))
    kernel = state(1.0).params["kernel"]
    swapped = jnp.asarray(kernel).at[0, 0].set(kernel[0, 1]).at[0, 1].set(kernel[0, 0])
    assert module._fingerprint(state(1.0).replace(params={"kernel": swapped})) != got
    assert module._fingerprint(state(1.0)) == got


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32", "float64", "uint32"])
def test_the_fingerprint_sees_every_dtype(dtype):
    with jax.enable_x64(True):
        one, two = jnp.asarray([1, 0, 1], dtype), jnp.asarray([1, 1, 0], dtype)
        assert module._fingerprint(one) != module._fingerprint(two)


def test_a_reader_falls_back_and_moves_nothing(three, caplog):
    truncate(three.directory / "3")
    with caplog.at_level(logging.WARNING, logger="jepa"):
        assert module.restore(three.directory, None, shapes(state())).step == 2
    assert "checkpoint 3" in caplog.text and "going on from checkpoint 2" in caplog.text
    assert three.steps() == [1, 2, 3] and not (three.directory.parent / "damaged").exists()
    assert module.restore(three.directory, 1, shapes(state())).step == 1
    with pytest.raises(UserError, match="Checkpoint 3 in .* is damaged"):
        module.restore(three.directory, 3, shapes(state()))


def test_a_reader_leaves_a_live_save_alone(three):
    live = three.directory / "4.orbax-checkpoint-tmp"
    live.mkdir()
    (live / "half").write_text("x")
    assert module.restore(three.directory, None, shapes(state())).step == 3
    assert (live / "half").read_text() == "x"


def test_what_another_process_cannot_read_counts_as_damaged(three, monkeypatch, caplog):
    elsewhere = {"read checkpoint 3": "process 1 (host-b) of 2: it is torn"}
    monkeypatch.setattr(module.hosts, "agree", lambda what, why: why or elsewhere.get(what, ""))
    with caplog.at_level(logging.WARNING, logger="jepa"):
        assert three.restore_latest(shapes(state())).step == 2
    assert "is damaged (process 1 (host-b) of 2: it is torn)" in caplog.text


def test_of_several_processes_one_that_fails_waits_for_no_other(three, monkeypatch):
    never, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(module.hosts, "count", lambda: 2)
    monkeypatch.setattr(module.hosts, "barrier", lambda what: pytest.fail(what))
    assert three.last_in_words() == "The last checkpoint is step 3."
    monkeypatch.setattr(module, "_SETTLE", 0.1)
    with monkeypatch.context() as patch:  # a save that waits for the others' parts
        patch.setattr(three._manager, "wait_until_finished", never.wait)
        patch.setattr(three._manager, "close", ended.set)
        patch.setattr(three, "steps", lambda: [1, 2, 3, 4])
        assert three.last_in_words() == "The last checkpoint is step 3."
        three.close()
        assert not ended.is_set()
        never.set()
        assert three.last_in_words() == "The last checkpoint is step 3."
        three.close()
        assert ended.is_set()


def test_the_best_is_known_and_kept_after_a_restart(tmp_path):
    def opened():
        return Checkpoints(tmp_path / "checkpoints", keep_last=1, keep_best_metric="e/score")

    saved = opened()
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.5)):
        saved.save(step, state(), {"next": step}, {}, {"e/score": score})
    saved.save(4, state(), {"next": 4}, {})
    assert not saved.is_best({"e/score": 0.8}) and saved.is_best({"e/score": 1.0})
    saved.close()

    again = opened()
    assert (again.steps(), again.best_step()) == ([2, 4], 2)
    assert not again.is_best({"e/score": 0.8})
    again.save(5, state(), {"next": 5}, {}, {"e/score": 0.8})
    again.save(6, state(), {"next": 6}, {})
    again.close()

    last = opened()
    assert (last.steps(), last.best_step()) == ([2, 6], 2)
    last.close()
    read = [module.restore(last.directory, step, shapes(state())) for step in (2, 6)]
    assert [each.evaluated for each in read] == [True, False]


@pytest.mark.parametrize(("scores", "kept"), [((0.2, 0.5, 0.5, 0.1), 2), ((math.nan,) * 4, None)])
def test_of_equal_ones_the_earliest_is_the_best(tmp_path, scores, kept):
    saved = Checkpoints(tmp_path / "checkpoints", keep_last=1, keep_best_metric="e/score")
    for step, score in enumerate(scores, 1):
        assert saved.is_best({"e/score": score}) == (step <= 2 and kept == 2)
        saved.save(step, state(), {"next": step}, {}, {"e/score": score})
    saved.wait()
    assert (saved.steps(), saved.best_step()) == ([step for step in (kept, 4) if step], kept)
    saved.close()


def test_a_checkpoint_is_replaced_by_one_of_the_same_step(three):
    three.save(3, state(9.0), {"next": 33}, {})
    three.wait()
    restored = three.restore_latest(shapes(state()))
    assert (restored.step, restored.data) == (3, {"next": 33})


def test_all_damaged_is_an_error_and_nothing_is_moved(three):
    for step in (1, 2, 3):
        empty(three.directory / str(step))
    with pytest.raises(UserError, match="None of the checkpoints.*1, 2, 3"):
        three.restore_latest(shapes(state()))
    assert three.steps() == [1, 2, 3]


def test_a_save_that_was_cut_off_does_not_count(three):
    torn = three.directory / "4.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "half").write_text("x")
    again = Checkpoints(three.directory, keep_last=3)
    assert again.steps() == [1, 2, 3]
    assert again.restore_latest(shapes(state())).step == 3
    again.close()


def test_no_checkpoint_at_all(tmp_path):
    none = Checkpoints(tmp_path / "checkpoints")
    assert none.restore_latest(shapes(state())) is None
    none.close()
    with pytest.raises(UserError, match="train first"):
        module.restore(tmp_path / "none", None, shapes(state()))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_user_error(three, monkeypatch, code):
    def fail(*args, **kwargs):
        raise ValueError("while saving") from OSError(code, os.strerror(code))

    monkeypatch.setattr(three._manager, "save", fail)
    with pytest.raises(UserError, match="no room on the disk"):
        three.save(4, state(4.0), {}, {})


FULL = textwrap.dedent(
    """
    import resource, signal, sys
    import jax
    from jepa.errors import UserError
    from tests.training import test_checkpoints as t
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    saved = t.Checkpoints(sys.argv[1], keep_last=3)
    saved.save(1, t.state(1.0), {"next": 1}, {})
    saved.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    try:
        saved.save(2, t.state(2.0), {"next": 2}, {})
        saved.wait()
    except UserError as error:
        print("UserError:", error)
    """
)


def test_a_save_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    """The operating system refuses the bytes for real: files may not grow beyond 2 kB."""
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "checkpoints")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )  # fmt: skip
    assert "UserError: There is no room on the disk" in done.stdout, done.stdout + done.stderr
    left = Checkpoints(tmp_path / "checkpoints")
    assert left.restore_latest(shapes(state())).step == 1
    left.close()
