"""Where the printed goodput says that time went: what is made to last is found there."""

import time

import jax
import pytest

from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import loop, progress
from tests.training import toy

COMPILE, LOAD, SAVE, EVALUATE, STEP = 0.5, 0.05, 0.3, 0.4, 0.03
STEPS = 10


class SlowLoader(toy.Loader):
    def __next__(self):
        time.sleep(LOAD)
        return super().__next__()


@pytest.fixture
def clocks(monkeypatch):
    made = []

    class Clock(progress.Clock):
        def __init__(self):
            super().__init__()
            made.append(self)

    def slowed(function, seconds):
        def call(*arguments, **keywords):
            time.sleep(seconds)
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(loop, "Clock", Clock)
    monkeypatch.setattr(loop, "compile_step", slowed(loop.compile_step, COMPILE))
    monkeypatch.setattr(loop.Checkpoints, "save", slowed(loop.Checkpoints.save, SAVE))
    return made


def run(workdir, loader=None, **overrides):
    config = configs.resolve(toy.config(train__steps=STEPS, **overrides))
    loader = loader or toy.Loader(config.train.global_batch, config.seed)
    evaluators = {"set": lambda state: time.sleep(EVALUATE) or {"at": 1.0}}
    return loop.train(
        config, workdir, method=toy.Toy(config), loader=loader,
        mesh=meshes.make_mesh(config.mesh, jax.devices()[:1]), evaluators=evaluators,
    )  # fmt: skip


def test_each_part_has_the_time_it_took(tmp_path, clocks, capsys):
    config = configs.resolve(toy.config())
    loader = SlowLoader(config.train.global_batch, config.seed)
    begin = time.perf_counter()
    result = run(tmp_path, loader, train__save_every=5, train__eval_every=5)
    wall = time.perf_counter() - begin
    (clock,) = clocks
    seconds = dict(clock.seconds)
    assert set(seconds) == {"start", "data", "step", "save", "evaluate"}
    assert seconds["start"] >= COMPILE
    # The first batches are loaded while the step is compiled; later waits are the loader's.
    assert seconds["data"] >= 0.5 * (STEPS - 3) * LOAD
    assert seconds["save"] >= 2 * SAVE
    assert seconds["evaluate"] >= 2 * EVALUATE
    # Nothing is counted twice, and little is not counted at all.
    assert 0.8 * wall <= sum(seconds.values()) <= wall
    assert result.goodput == pytest.approx(seconds["step"] / clock.wall(), rel=0.1)
    said = capsys.readouterr().out.splitlines()[-1]
    for part in ("goodput ", "start ", "data ", "step ", "save ", "evaluate "):
        assert part in said


@pytest.mark.slow
def test_time_in_steps_is_goodput_and_waiting_for_data_is_not(tmp_path, clocks, monkeypatch):
    made = loop.compile_step

    class Slow:
        def __init__(self, *arguments):
            self._program = made(*arguments)
            self.memory, self.seconds = self._program.memory, self._program.seconds

        def __call__(self, *arguments):
            time.sleep(STEP)
            return self._program(*arguments)

    monkeypatch.setattr(loop, "compile_step", Slow)
    run(tmp_path, train__save_every=0, train__eval_every=0)
    (clock,) = clocks
    assert clock.seconds["step"] >= STEPS * STEP
    assert clock.seconds["data"] < STEPS * STEP
