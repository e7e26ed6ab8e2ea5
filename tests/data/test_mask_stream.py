"""Masks in a batch: the sampler's, by the place of each sample in the global order."""

import jax
import ml_collections
import numpy as np
import pytest
from loading_helpers import config, record, rows_of, same, take, write

from jepa.batch_part import BatchPart
from jepa.data.config import default_data_config
from jepa.data.loader import make_train_loader
from jepa.errors import UserError
from jepa.masks.multiblock import Multiblock
from jepa.masks.tubes import Tubes

KINDS = {"long": {"blocks": 2, "scale": 0.7}, "short": {"blocks": 8, "scale": [0.15, 0.15]}}
TUBES = {"sampler": "tubes", "kinds": KINDS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i, count=4, captions=(), questions=()) for i in range(6)]
    return write(tmp_path_factory.mktemp("data") / "set", {"train": records})


def masked(path, masks, **keys):
    keys = {"streams": ("video", "masks"), "patch": 4, "tubelet": 2, "masks": masks, **keys}
    return config(path, **keys)


def test_tubes_are_those_of_the_sampler_at_the_global_positions(data):
    loader = make_train_loader(masked(data, TUBES), global_batch=6, seed=7)
    batches = take(loader, 2)
    expected = Tubes.parse({"kinds": KINDS}, (2, 8, 8))
    assert loader.masks == expected
    for step, batch in enumerate(batches):
        same(batch["masks"], expected.sample(7, np.arange(6 * step, 6 * step + 6)))
    found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batches[0])
    assert found == loader.element_spec
    # The second batch is the second epoch of the six clips, and no clip has its old mask.
    again = np.concatenate([batch["masks"]["short"]["target"] for batch in batches])
    assert len(np.unique(again, axis=0)) == 12


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_hosts_and_restarts_change_nothing(data, workers):
    keys = masked(data, TUBES, workers=workers)
    whole = take(make_train_loader(masked(data, TUBES), global_batch=6, seed=7), 3)
    part = make_train_loader(keys, global_batch=6, seed=7, part=BatchPart((1,), 3))
    part.restore({"position": 6})
    for batch, other in zip(whole[1:], take(part, 2), strict=True):
        same(rows_of(batch, slice(2, 4)), other)


def test_images_fill_a_tubelet_and_multiblock_keeps_its_names(data):
    keys = masked(data, {"sampler": "multiblock", "targets": 3}, frames=1)
    loader = make_train_loader(keys, global_batch=6, seed=7)
    (batch,) = take(loader, 1)
    expected = Multiblock((1, 8, 8), targets=3)
    same(batch["masks"], expected.sample(7, np.arange(6)))


def test_sections_of_a_config_are_taken(data):
    values = default_data_config()
    values.update(masked(data, {}))
    with values.unlocked():
        values.masks = ml_collections.ConfigDict(TUBES)
    loader = make_train_loader(values, global_batch=6, seed=7)
    assert loader.masks == Tubes.parse({"kinds": KINDS}, (2, 8, 8))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"masks": {}}, "data.masks is"),
        ({"masks": "tubes"}, "data.masks is 'tubes'; it must be a section"),
        ({"masks": {"sampler": "holes"}}, "data.masks.sampler is 'holes'"),
        ({"masks": {"sampler": "tubes", "kindly": 1}}, "data.masks.kindly"),
        ({"patch": 0}, "data.patch is 0; .*data.size=32"),
        ({"patch": 5}, "data.patch is 5; .*data.size=32"),
        ({"tubelet": 3}, "data.tubelet is 3; .*data.frames=4"),
        ({"tubelet": 0}, "data.tubelet is 0"),
    ],
)
def test_mistakes_are_named(data, keys, named):
    with pytest.raises(UserError, match=named):
        make_train_loader(masked(data, **{"masks": TUBES, **keys}), global_batch=6, seed=0)


def test_without_the_stream_the_grid_is_of_no_matter(data):
    loader = make_train_loader(
        masked(data, TUBES, streams=("video",), patch=5, tubelet=3), global_batch=6, seed=0
    )
    assert take(loader, 1)[0].keys() == {"video"}
