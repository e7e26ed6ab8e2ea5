"""IDX files: read as they are, checked, and made batches of without decoding."""

import gzip
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from loading_helpers import rows_of, same, take

from jepa.batch_part import BatchPart
from jepa.data.idx import FASHION, IdxSplit
from jepa.data.loader import make_train_loader
from jepa.errors import UserError

REAL = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write(directory, prefix, images, labels, *, packed=False):
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data = idx(array)
        path = directory / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data, 1) if packed else data)


def digits(count, size=8, seed=0):
    """Pictures whose upper left pixel is their number."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size), np.uint8)
    images[:, 0, 0] = np.arange(count)
    return images, (np.arange(count) * 7 % 5).astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    """Gzipped train pictures 0-39 of classes 0-4, plain test pictures of classes 0-1 only."""
    write(tmp_path / "set", "train", *digits(40), packed=True)
    images, labels = digits(10, seed=1)
    write(tmp_path / "set", "t10k", images, labels % 2)
    return tmp_path / "set"


def config(path, **keys):
    keys = {"frames": 1, "size": 8, "streams": ("video", "label"), "cache": "memory", **keys}
    return {"path": f"idx:{path}", **keys}


def test_splits_are_read_gzipped_or_not(data):
    images, labels = digits(40)
    train = pickle.loads(pickle.dumps(IdxSplit(data, "train")))
    np.testing.assert_array_equal(train.pixels, images)
    np.testing.assert_array_equal(train.class_ids, labels)
    test = IdxSplit(data, "test")
    assert len(train) == 40 and len(test) == 10
    assert train.digest != test.digest == IdxSplit(data, "t10k").digest
    # The test split has two classes, and numbers them as the train split does.
    assert train.classes == test.classes == ("0", "1", "2", "3", "4")
    record = train.record(3)
    assert record.labels == {"class": "1"} and record.media == "image"
    assert record.video == images[3].tobytes() and train.record(3, video=False).video == b""
    assert record.captions[0].text == "a photo of a 1"


def test_folders_named_as_files_are_passed_over(tmp_path):
    """Kaggle's archive of MNIST has each file twice, once in a folder of its name."""
    images, labels = digits(5)
    for name, array in (("images", images), ("labels", labels)):
        file = tmp_path / f"train-{name}.idx{array.ndim}-ubyte"
        file.write_bytes(idx(array))
        (tmp_path / f"train-{name}-idx{array.ndim}-ubyte").mkdir()
    np.testing.assert_array_equal(IdxSplit(tmp_path, "train").pixels, images)


def test_a_folder_of_fashion_knows_its_classes(tmp_path):
    write(tmp_path / "Fashion-set", "train", *digits(10))
    assert IdxSplit(tmp_path / "Fashion-set", "train").classes == FASHION
    write(tmp_path / "fashion-letters", "train", digits(3)[0], np.array([1, 26, 2], np.uint8))
    assert len(IdxSplit(tmp_path / "fashion-letters", "train").classes) == 27


@pytest.mark.parametrize("keys", [{}, {"cache": "none", "workers": 0}, {"frames": 3}])
def test_batches_are_the_pixels_themselves(data, keys):
    images, labels = digits(40)
    loader = make_train_loader(config(data, **keys), global_batch=20, seed=0)
    assert loader.classes == ("0", "1", "2", "3", "4")
    batches = take(loader, 2)
    found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batches[0])
    assert found == loader.element_spec
    video = np.concatenate([batch["video"] for batch in batches])
    numbers = video[:, 0, 0, 0, 0]
    assert sorted(numbers) == list(range(40)) != numbers.tolist()
    for channel in range(3):
        for frame in range(video.shape[1]):
            np.testing.assert_array_equal(video[:, frame, :, :, channel], images[numbers])
    np.testing.assert_array_equal(
        np.concatenate([batch["label"] for batch in batches]), labels[numbers]
    )


def test_mirrored_and_cropped_rows_do_not_depend_on_hosts(data):
    keys = config(data, flip=True)
    (batch,) = take(make_train_loader(keys, global_batch=40, seed=0), 1)
    images, _ = digits(40)
    seen = batch["video"][:, 0, :, :, 0]
    plain = (seen[:, None] == images).all((2, 3))
    mirrored = (seen[:, None] == images[:, :, ::-1]).all((2, 3))
    assert (plain | mirrored).sum(axis=1).tolist() == [1] * 40
    assert 8 < plain.sum() < 32
    keys = config(data, flip=True, crop="random_resized", size=6)
    (whole,) = take(make_train_loader(keys, global_batch=20, seed=0), 1)
    assert whole["video"].shape == (20, 1, 6, 6, 3)
    part = make_train_loader(keys, global_batch=20, seed=0, part=BatchPart((1,), 4))
    same(rows_of(whole, slice(5, 10)), take(part, 1)[0])
    # As all random choices, it is another one in the next epoch.
    batches = take(make_train_loader(keys, global_batch=40, seed=0), 2)
    one, two = (np.sort(batch["video"][:, 0].sum((1, 2, 3))) for batch in batches)
    assert (one != two).any()


def test_texts_and_other_sizes(data):
    keys = config(data, size=5, streams=("video", "text"), frame_control="blank")
    (batch,) = take(make_train_loader(keys, global_batch=4, seed=0), 1)
    assert (batch["video"] == 128).all() and batch["video"].shape == (4, 1, 5, 5, 3)
    assert batch["text"]["mask"].any(axis=1).all()


@pytest.mark.slow
def test_worker_processes_read_the_files_anew(data):
    keys = config(data, cache="none", size=6)
    alone = take(make_train_loader(keys, global_batch=4, seed=0), 2)
    workers = make_train_loader({**keys, "workers": 1}, global_batch=4, seed=0)
    for one, other in zip(alone, take(workers, 2), strict=True):
        same(one, other)


def _damage(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("train-images-idx3-ubyte.gz", lambda b: b[:-20], "train-images.*cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda b: b[5:], "train-images.*cannot be read"),
        (
            "train-images-idx3-ubyte.gz",
            lambda b: b[:300] + bytes(50) + b[350:],
            "train-images.*cannot be read",
        ),
        (
            "t10k-images-idx3-ubyte",
            lambda b: b[:-1],
            "t10k-images-idx3-ubyte holds 639 bytes where its header says 10x8x8",
        ),
        ("t10k-images-idx3-ubyte", lambda b: b + b"x", "holds 641 bytes"),
        ("t10k-images-idx3-ubyte", lambda b: b[:10], "holds 0 bytes where its header says 10;"),
        (
            "t10k-images-idx3-ubyte",
            lambda b: b"\0\0\x0d\3" + b[4:],
            "begins with 00 00 0d 03 instead of 00 00 08 03",
        ),
        ("t10k-images-idx3-ubyte", lambda b: b"", "begins with nothing"),
        (
            "t10k-images-idx3-ubyte",
            lambda b: idx(np.zeros((10, 0, 8), np.uint8)),
            "t10k-images-idx3-ubyte holds pictures of 0x8 pixels",
        ),
        ("t10k-labels-idx1-ubyte", lambda b: idx(digits(2)[0]), "instead of 00 00 08 01"),
        (
            "t10k-labels-idx1-ubyte",
            lambda b: idx(np.zeros(9, np.uint8)),
            "holds 10 pictures and t10k-labels-idx1-ubyte 9 labels",
        ),
    ],
)
def test_damaged_files_are_named(data, file, change, named):
    _damage(data / file, change)
    with pytest.raises(UserError, match=named):
        IdxSplit(data, "train" if "train" in file else "test")


def test_what_is_not_there_is_named(data, tmp_path):
    with pytest.raises(UserError, match="no split 'validation'; it has test, train"):
        IdxSplit(data, "validation")
    with pytest.raises(UserError, match="no folder.*dataset-fashion-mnist"):
        IdxSplit(tmp_path / "nothing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no IDX file"):
        IdxSplit(tmp_path / "empty", "train")
    (data / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="no t10k-labels-idx1-ubyte beside t10k-images"):
        IdxSplit(data, "test")
    for keys, named in (({"cache": "disk"}, "data.cache"), ({"pixels": "yuv420"}, "data.pixels")):
        with pytest.raises(UserError, match=named):
            make_train_loader(config(data, **keys), global_batch=4, seed=0)
    with pytest.raises(UserError, match="data.label is 'digit'.*it has class"):
        make_train_loader(config(data, label="digit"), global_batch=4, seed=0)


@pytest.mark.skipif(
    not REAL.is_dir(), reason="no Fashion-MNIST: `apt-get install dataset-fashion-mnist`"
)
def test_fashion_mnist_is_what_it_is():
    test = IdxSplit(REAL, "test")
    assert test.pixels.shape == (10000, 28, 28) and test.classes == FASHION
    assert np.bincount(test.class_ids).tolist() == [1000] * 10
    # Trousers are tall: of their pixels that are not black, few lie at the sides.
    trousers = test.pixels[test.class_ids == FASHION.index("Trouser")].mean(axis=0)
    assert trousers[:, 10:18].mean() > 4 * trousers[:, [*range(6), *range(22, 28)]].mean()


def test_without_texts_no_record_is_made(data, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a record for each sample would cost more than its pixels")

    monkeypatch.setattr(IdxSplit, "record", refuse)
    keys = config(data, flip=True, crop="random_resized")
    assert len(take(make_train_loader(keys, global_batch=40, seed=0), 2)) == 2
