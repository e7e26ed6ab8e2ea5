"""The shapes of a batch by the config alone are those that the loader gives."""

import jax
import numpy as np
import pytest
from loading_helpers import config, record, take, write

from jepa.data import outline
from jepa.data.config import DataConfig
from jepa.data.loader import make_train_loader

MASKS = {"sampler": "tubes", "kinds": {"short": {"blocks": 1, "scale": 0.2}}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "set"
    records = [record(i, labels={"colour": ("red", "blue")[i % 2]}) for i in range(4)]
    return write(directory, {"train": records}, attributes=None)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"pixels": "yuv420", "pairs_per_clip": 2, "query_length": 5},
        {"streams": ("video", "label"), "label": "colour"},
        {"streams": ("video", "masks"), "patch": 8, "tubelet": 2, "masks": MASKS},
        {
            "streams": ("video", "masks"),
            "patch": 8,
            "tubelet": 2,
            "masks": MASKS,
            "images": {"batch": 6, "size": 16, "masks": MASKS},
        },
    ],
    ids=["text", "yuv420", "label", "masks", "images"],
)
def test_no_dataset_is_needed_to_know_a_batch(plain, keys):
    keys = {"frames": 4, "size": 32, "text_length": 7, **keys}
    if "images" in keys:
        keys["images"] = {"path": str(plain), **keys["images"]}
    given = config(plain, **keys)
    loader = make_train_loader(given, global_batch=4, seed=0)
    nowhere = DataConfig.parse({**dict(given), "path": "/nowhere"})
    found = outline.batch_spec(nowhere, 4)
    assert found == loader.element_spec
    (batch,) = take(loader, 1)
    assert jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch) == jax.tree.map(
        lambda x: (x.shape, np.dtype(x.dtype)), found
    )
