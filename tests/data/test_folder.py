"""Folders of classes, read in place: pictures and videos, in natural order."""

import io
import os
import pickle

import numpy as np
import pytest
from loading_helpers import mp4, pictures, take
from PIL import Image

from jepa.data.evalset import EvalSet
from jepa.data.folder import FolderSplit
from jepa.data.loader import make_train_loader
from jepa.errors import UserError


def picture(level, height=32, width=32, form="PNG"):
    """An encoded picture of one level of grey."""
    data = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(data, form)
    return data.getvalue()


def jpeg(pixels, **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", **options)
    return data.getvalue()


def fill(directory, files):
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


@pytest.fixture
def data(tmp_path):
    """Grey pictures whose level is ten times their place in the natural order."""
    return fill(
        tmp_path / "set",
        {
            "train/class2/2.png": picture(0),
            "train/class2/10.JPG": picture(10, form="JPEG"),
            "train/class2/more/1.png": picture(20),
            "train/class2/notes.txt": b"not a picture",
            "train/class2/.hidden.png": b"",
            "train/class10/a.png": picture(30),
            "train/class10/b.mp4": mp4(np.full((6, 32, 32, 3), 40, np.uint8), fps=6),
            "test/class10/x.png": picture(100),
            "test/another_class/y.webp": picture(200, form="WEBP"),
            "README.md": b"",
        },
    )


def config(path, **keys):
    keys = {"frames": 2, "size": 16, "streams": ("video", "label"), **keys}
    return {"path": f"folder:{path}", **keys}


def test_files_come_in_natural_order_with_the_classes_of_all_splits(data):
    split = pickle.loads(pickle.dumps(FolderSplit(data, "train")))
    names = ["2.png", "10.JPG", "more/1.png", "a.png", "b.mp4"]
    assert [split.record(i).key.partition("/")[2].partition("/")[2] for i in range(5)] == names
    assert split.classes == FolderSplit(data, "test").classes
    assert split.classes == ("another_class", "class2", "class10")
    assert split.class_ids.tolist() == [1, 1, 1, 2, 2]
    first, video = split.record(0, video=False), split.record(4)
    assert first.video == b"" and (first.height, first.width, first.codec) == (32, 32, "png")
    assert first.media == "image" and first.labels == {"class": "class2"}
    assert (video.media, video.frames, video.fps, video.codec) == ("video", 6, 6.0, "h264")
    assert video.video == (data / "train/class10/b.mp4").read_bytes()
    other = FolderSplit(data, "test").record(0)
    assert other.captions[0].text == "a photo of an another class"


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_batches_and_evaluation(data, cache):
    loader = make_train_loader(config(data, cache=cache), global_batch=5, seed=0)
    (batch,) = take(loader, 1)
    levels = batch["video"].mean((1, 2, 3, 4))
    order = np.rint(levels / 10).astype(int)
    assert sorted(order) == list(range(5))
    np.testing.assert_allclose(levels, 10 * order, atol=2)
    np.testing.assert_array_equal(batch["label"], np.array([1, 1, 1, 2, 2])[order])
    evaluated = EvalSet(config(data, cache=cache), "test")
    assert evaluated.classes == loader.classes and evaluated.labels.tolist() == [0, 2]
    ((valid, video),) = evaluated.batches(3)
    assert valid == 2 and np.abs(video.mean((1, 2, 3, 4)) - [200, 100, 128]).max() <= 2


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_unreadable_files_are_replaced_and_counted(data, cache):
    noise = jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    fill(
        data / "train",
        {
            "class2/0.png": picture(0)[:40],
            "class2/empty.jpg": b"",
            "class2/half.jpg": noise[: len(noise) // 2],
            "class10/c.mp4": mp4(pictures(6))[:200],
        },
    )
    os.symlink(data / "nowhere.png", data / "train/class10/link.png")
    keys = config(data, cache=cache, max_bad_fraction=0.5)
    loader = make_train_loader(keys, global_batch=10, seed=0)
    batch, _ = take(loader, 2)
    assert (np.rint(batch["video"].mean((1, 2, 3, 4)) / 10) < 5).all()
    reasons = "\n".join(loader.unreadable.values())
    bad = ("0.png", "empty.jpg", "half.jpg")
    names = [f"class2/{name}" for name in bad] + ["class10/c.mp4", "class10/link.png"]
    assert len(loader.unreadable) == len(names)
    for name in names:
        assert f"train/{name}: " in reasons
    with pytest.raises(UserError, match="max_bad_fraction"):
        take(make_train_loader({**keys, "max_bad_fraction": 0.2}, global_batch=9, seed=0), 1)


def test_files_without_a_class(data):
    fill(data / "loose", {"2.png": picture(0), "10.png": picture(10)})
    split = FolderSplit(data, "loose")
    assert [split.record(i).key for i in range(2)] == ["loose/2.png", "loose/10.png"]
    assert split.class_ids.tolist() == [-1, -1] and split.record(0).labels == {}
    keys = config(data, split="loose")
    (batch,) = take(make_train_loader({**keys, "streams": ("video",)}, global_batch=2, seed=0), 1)
    assert batch.keys() == {"video"}
    with pytest.raises(UserError, match="'loose/.*no label 'class'"):
        take(make_train_loader(keys, global_batch=2, seed=0), 1)
    only = fill(data.parent / "only", {"train/a.png": picture(0)})
    with pytest.raises(UserError, match="data.label is 'class'.*it has none"):
        make_train_loader(config(only), global_batch=1, seed=0)


def test_the_digest_is_of_names_and_sizes(data):
    before = FolderSplit(data, "train").digest
    assert FolderSplit(data, "train").digest == before
    fill(data / "train", {"class2/2.png": picture(0, 40)})
    after = FolderSplit(data, "train").digest
    os.rename(data / "train/class2/2.png", data / "train/class2/3.png")
    assert len({before, after, FolderSplit(data, "train").digest}) == 3


def test_what_is_not_there_is_named(data):
    (data / "train" / "class3").mkdir()
    fill(data, {"train/class3/readme.txt": b"", "void/.keep": b""})
    with pytest.raises(UserError, match="class folder .*class3 holds no picture"):
        FolderSplit(data, "train")
    assert len(FolderSplit(data, "test")) == 2
    with pytest.raises(UserError, match="no folder 'validation'.*it has test, train, void"):
        FolderSplit(data, "validation")
    with pytest.raises(UserError, match="no folder; name one that holds SPLIT/CLASS"):
        FolderSplit(data / "nothing", "train")
    with pytest.raises(UserError, match="split 'void' of .* is empty"):
        make_train_loader(config(data, split="void"), global_batch=2, seed=0)
    with pytest.raises(UserError, match="data.cache is 'disk'"):
        make_train_loader(config(data, split="test", cache="disk"), global_batch=2, seed=0)


def test_links_in_a_circle_are_walked_once(data, tmp_path):
    """A file counts once below its folder, however often links lead back to a folder above it."""
    os.symlink(".", data / "train/class2/again")
    os.symlink(data / "train", data / "train/class10/all")
    elsewhere = fill(tmp_path / "elsewhere", {"e.png": picture(0)})
    os.symlink(elsewhere, data / "train/class10/linked")
    split = FolderSplit(data, "train")
    names = [split.record(i, video=False).key for i in range(len(split))]
    assert names[:4] == [
        "train/class2/2.png",
        "train/class2/10.JPG",
        "train/class2/more/1.png",
        "train/class10/a.png",
    ]
    assert "train/class10/linked/e.png" in names
    # The other link gives the files of the split's folder, and no more than once.
    through = [name for name in names if name.startswith("train/class10/all/")]
    assert sorted(through) == [
        f"train/class10/all/class2/{name}" for name in ("10.JPG", "2.png", "more/1.png")
    ]


def test_names_in_other_scripts_and_encodings(data):
    fill(data, {"named/caf\u00e9/\u732b %03d.png": picture(0)})
    split = FolderSplit(data, "named")
    assert split.record(0, video=False).width == 32
    assert split.record(0).key == "named/caf\u00e9/\u732b %03d.png"
    fill(data, {"named/caf\u00e9/\udcff.png": picture(0)})
    assert [FolderSplit(data, "named").record(i).key.encode() for i in range(2)][1:] == [
        b"named/caf\xc3\xa9/\\xff.png"
    ]
    fill(data, {"named/\udcff/a.png": picture(0)})
    with pytest.raises(UserError, match="class folder .*UTF-8; rename it"):
        FolderSplit(data, "named")


def test_a_folder_that_cannot_be_listed_is_named(data, monkeypatch):
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="more cannot be listed .*Permission denied"):
        FolderSplit(data, "train")


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize(("orientation", "turns"), [(6, 1), (8, 3), (3, 2)])
def test_pictures_that_ask_to_be_turned_are_cropped_as_they_are_shown(
    tmp_path, cache, orientation, turns
):
    """The crops of a phone's picture are those of the same picture stored upright."""
    rows, columns = np.mgrid[:80, :40]
    shown = np.stack([3 * rows, 6 * columns, 0 * rows], axis=-1).astype(np.uint8)
    options = {"quality": 100, "subsampling": 0}
    exif = Image.Exif()
    exif[274] = orientation
    turned = jpeg(np.rot90(shown, turns), exif=exif, **options)
    for name, data in (("turned", turned), ("upright", jpeg(shown, **options))):
        fill(tmp_path, {f"{name}/train/a.jpg": data})
    keys = {"cache": cache, "frames": 1, "streams": ("video",), "crop": "random_resized"}
    turned, upright = (
        take(make_train_loader(config(tmp_path / name, **keys), global_batch=8, seed=0), 1)[0]
        for name in ("turned", "upright")
    )
    off = turned["video"].astype(int) - upright["video"]
    assert np.abs(off).max() < 12 and upright["video"][:, 0, :, :, 0].std(axis=(1, 2)).min() > 15
