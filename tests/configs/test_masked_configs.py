"""Every size of the masked methods: it builds, and has as many parameters as the published one."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from jepa import methods
from jepa.data.config import DataConfig
from jepa.data.joint import images_config
from jepa.errors import UserError
from jepa.masks.config import from_config
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training import loop, phases, schedules

ROOT = Path(__file__).parents[2] / "configs"
# Millions of parameters of the encoder and of the predictor. Published: B 86 (80 in 2.1), L 304
# ("300"), H 632 ("600"), g 1,012 ("1 B"), G "2 B"; predictor 22.
PUBLISHED = {
    "i_jepa/pretrain": {
        "tiny16": (5.5, 11),
        "small16": (21.6, 11),
        "base16": (86, 11),
        "large16": (304, 22),
        "huge14": (632, 22),
        "huge16_448": (632, 22),
        "huge14_in22k": (632, 22),
        "giant16_in22k": (1012, 29),
    },
    "v_jepa/pretrain": {
        "tiny": (5.6, 22),
        "small": (22, 22),
        "base": (86, 22),
        "large": (304, 22),
        "huge": (632, 22),
        "huge_384": (632, 22),
    },
    "v_jepa_2/pretrain": {
        "tiny": (5.6, 22),
        "small": (22, 22),
        "base": (86, 22),
        "large": (304, 22),
        "huge": (632, 22),
        "giant": (1012, 22),
        "giant_384": (1012, 22),
    },
    # 24 blocks, an embedding of 4 D numbers, and two heads of as many.
    "v_jepa_2_1/pretrain": {
        "small": (22, 45),
        "base": (86, 48),
        "large": (304, 51),
        "giant": (1012, 56),
        "gigantic": (1840, 60),
    },
    "v_jepa_2_1/distillation": {"small": (22, 23), "base": (86, 23), "large": (304, 23)},
    "i_jepa/fashion_mnist": {"": (0.8, 0.12)},
    "v_jepa/world": {"": (1.19, 0.067)},
    "v_jepa_2/world": {"": (1.19, 0.067)},
    "v_jepa_2_1/world": {"": (1.19, 0.2)},
}
ALL = [(path, size) for path, sizes in PUBLISHED.items() for size in sizes]


def load(path, size=""):
    file = ROOT / f"{path}.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(size) if size else module.get_config()
    if "teacher" in config.model:
        config.model.teacher.weights = "somewhere"
    return configs.resolve(config)


def stream(data):
    masks = from_config(data.masks, data.grid).spec(2)
    shape = (2, data.frames, data.size, data.size, 3)

    def one(leaf):
        return jax.ShapeDtypeStruct(leaf[0], np.dtype(leaf[1]))

    return {
        "video": jax.ShapeDtypeStruct(shape, np.uint8),
        "masks": jax.tree.map(one, masks, is_leaf=lambda x: isinstance(x, tuple)),
    }


def batch(config):
    data = DataConfig.parse(config.data)
    made = stream(data)
    if data.images:
        made["images"] = stream(images_config(data)[0])
    return made


def millions(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6


@pytest.mark.parametrize(("path", "size"), ALL)
def test_a_config_builds_and_is_as_large_as_the_published_one(path, size):
    config = load(path, size)
    for phase in phases.plan(config):
        method = methods.from_config(phase.config)
        configs.check_run(phase.config, method, devices=8)
        loop.make_step(phase.config, method)
        data = batch(phase.config)
        assert method.flops(data) > 0
        if phase.index == 0:
            params, _ = jax.eval_shape(method.init, jax.random.key(0), data)
            partition.specs(method.partition_table, params)
    encoder, predictor = PUBLISHED[path][size]
    assert millions(params["encoder"]) == pytest.approx(encoder, rel=0.03)
    assert millions(params["predictor"]) == pytest.approx(predictor, rel=0.05)
    if "teacher" in params:
        assert millions(params["teacher"]) == pytest.approx(1840, rel=0.03)


def test_no_config_is_left_out():
    folders = {path.partition("/")[0] for path in PUBLISHED}
    found = {f"{path.parent.name}/{path.stem}" for path in ROOT.rglob("*.py")}
    assert {path for path in found if path.partition("/")[0] in folders} == set(PUBLISHED)


@pytest.mark.parametrize("path", [path for path, sizes in PUBLISHED.items() if "" not in sizes])
def test_an_unknown_size_is_refused(path):
    with pytest.raises(UserError, match=f"configs/{path}.py has no size 'enormous'"):
        load(path, "enormous")


def test_the_encoder_sees_as_many_tokens_as_the_authors():
    """Theirs sees the smallest context of 24; docs/masks.md has those counts."""
    masks = batch(load("v_jepa_2/pretrain", "large"))["masks"]
    tokens = 8 * 16 * 16
    assert abs(masks["short"]["context"].shape[1] - 472) < 0.01 * tokens
    assert abs(masks["long"]["context"].shape[1] - 104) < 0.01 * tokens
    images = batch(load("v_jepa_2_1/pretrain", "giant"))["images"]["masks"]
    assert abs(images["image"]["context"].shape[1] - 45) < 0.01 * 256


def rate(config):
    """The learning rate, the weight decay and the momentum by step of the run, over all phases."""
    made = []
    for phase in phases.plan(config):
        own = phase.config
        length = schedules.stretched(own.train.steps, own.optimizer.schedule_scale)
        optimizer = own.optimizer
        made.append(
            (
                phase.last,
                schedules.shifted(
                    schedules.learning_rate(
                        optimizer.schedule,
                        peak=optimizer.learning_rate,
                        steps=length,
                        warmup_steps=optimizer.warmup_steps,
                        decay_steps=optimizer.decay_steps,
                        start_factor=optimizer.start_factor,
                        final_factor=optimizer.final_factor,
                    ),
                    phase.first,
                ),
                schedules.shifted(
                    schedules.weight_decay(
                        optimizer.weight_decay, optimizer.final_weight_decay, steps=length
                    ),
                    phase.first,
                ),
                configs.ema_schedule(own, phase.first),
            )
        )

    def at(step):
        _, *values = next(entry for entry in made if step < entry[0] or entry is made[-1])
        return [float(value(step)) for value in values]

    return at


@pytest.mark.parametrize(
    ("path", "size", "corners"),
    [
        (
            "i_jepa/pretrain",
            "huge14",
            {
                0: (2e-4, 0.04, 0.996),
                25_000: (1e-3, None, None),
                187_500: (1e-6, 0.4, 1.0),
            },
        ),
        # Cut at four fifths of the schedules: 78,000 of the 100,500 steps of the fall.
        (
            "v_jepa/pretrain",
            "large",
            {
                0: (2e-4, 0.04, 0.998),
                12_000: (6.25e-4, None, None),
                90_000: (
                    1e-6 + 6.24e-4 * 0.5 * (1 + np.cos(np.pi * 78 / 100.5)),
                    0.04 + 0.36 * 0.5 * (1 - np.cos(np.pi * 0.8)),
                    0.9996,
                ),
            },
        ),
        (
            "v_jepa_2/pretrain",
            "giant_384",
            {
                0: (1e-4, 0.04, 0.99925),
                12_000: (5.25e-4, 0.04, 0.99925),
                239_999: (5.25e-4, 0.04, 0.99925),
                246_000: (2.63e-4, 0.04, 0.99925),
                252_000: (1e-6, 0.04, 0.99925),
            },
        ),
        (
            "v_jepa_2_1/pretrain",
            "gigantic",
            {
                0: (1e-4, 0.04, 0.99925),
                134_999: (5.25e-4, 0.04, 0.99925),
                147_000: (1e-6, 0.04, 0.99925),
            },
        ),
    ],
)
def test_schedules_have_the_papers_corners(path, size, corners):
    at = rate(load(path, size))
    for step, wanted in corners.items():
        for found, value in zip(at(step), wanted, strict=True):
            if value is not None:
                assert found == pytest.approx(value, rel=1e-3), step
