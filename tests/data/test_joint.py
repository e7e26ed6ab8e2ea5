"""Clips and images side by side: two loaders, one batch, one position to go on from."""

import json

import jax
import numpy as np
import pytest
from loading_helpers import config, record, rows_of, same, take, write

from jepa.batch_part import BatchPart
from jepa.data.loader import make_train_loader
from jepa.errors import UserError
from jepa.masks.tubes import IMAGE, Tubes

KINDS = {"image": {"blocks": 10, "scale": 0.15}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    records = [record(i, count=4, captions=(), questions=()) for i in range(6)]
    return write(tmp_path_factory.mktemp("data") / "set", {"train": records})


def joint(path, /, **images):
    images = {"path": str(path), "batch": 4, "size": 16, **images}
    images.setdefault("masks", {"sampler": "tubes", "kinds": KINDS})
    streams, masks = ("video", "masks"), {"sampler": "tubes"}
    return config(path, streams=streams, masks=masks, patch=4, tubelet=2, images=images)


def test_a_batch_has_both_with_masks_of_their_own(data):
    loader = make_train_loader(joint(data), global_batch=2, seed=7)
    batches = take(loader, 2)
    found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batches[0])
    assert found == loader.element_spec
    frames = batches[0]["video"].shape[1]
    assert frames > 1 and batches[0]["images"]["video"].shape == (4, 1, 16, 16, 3)
    counts = Tubes((1, 4, 4), (IMAGE,)).counts["image"]
    context = batches[0]["images"]["masks"]["image"]["context"]
    assert context.shape == (4, counts["context"])
    # The clips are those of a loader without images.
    keys = {**joint(data), "images": {}}
    same({k: v for k, v in batches[1].items() if k != "images"}, _second(keys))


def _second(keys):
    return take(make_train_loader(keys, global_batch=2, seed=7), 2)[1]


def test_it_goes_on_from_its_state_on_any_number_of_hosts(data):
    whole = take(make_train_loader(joint(data), global_batch=2, seed=7), 3)
    first = make_train_loader(joint(data), global_batch=2, seed=7)
    next(first)
    state = json.loads(json.dumps(first.state()))
    first.close()
    part = make_train_loader(joint(data), global_batch=2, seed=7, part=BatchPart((1,), 2))
    part.restore(state)
    for batch, other in zip(whole[1:], take(part, 2), strict=True):
        images = batch.pop("images")
        same(rows_of(batch, slice(1, 2)), {k: v for k, v in other.items() if k != "images"})
        same(rows_of(images, slice(2, 4)), other["images"])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"batch": 0}, "data.images.batch is 0"),
        ({"batch": 3}, "data.images.batch is 3, which 2 hosts"),
        ({"frames": 4}, "'data.images.frames' does not exist"),
        ({"size": 15}, "of data.images: data.patch is 4"),
        ({"path": ""}, "of data.images: data.path is ''"),
    ],
)
def test_a_mistake_in_the_images_is_told(data, images, words):
    with pytest.raises(UserError, match=words):
        make_train_loader(joint(data, **images), global_batch=2, seed=0, part=BatchPart((0,), 2))


def test_a_state_from_before_the_images_is_refused(data):
    loader = make_train_loader(joint(data), global_batch=2, seed=0)
    with pytest.raises(UserError, match="began without data.images"):
        loader.restore({"position": 2})
    loader.close()
    assert np.array_equal(loader.state()["position"], 0)
