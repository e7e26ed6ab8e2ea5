"""Frozen features on disk: computed once, never taken for others, computed again when damaged."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.evaluation import probes_features
from jepa.evaluation.probes_features import FeatureStore
from jepa.nn.frames import to_rgb
from jepa.parallel import mesh as meshes
from tests.evaluation import probe_toy


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh({"data": 4, "fsdp": 2})


@pytest.fixture
def data(tmp_path):
    probe_toy.write(tmp_path / "set")
    path = f"idx:{tmp_path / 'set'}"
    return DataConfig.parse({"path": path, "frames": 1, "size": 8, "streams": ("video",)})


def encoder(scale=1.0, digest="a"):
    """Rows of the picture are tokens; the first of them is what is pooled."""

    def apply(arguments, video):
        rows = to_rgb(video)[:, 0, :, :, 0] * arguments
        return {"tokens": rows, "pooled": rows[:, 0]}

    return probes_features.Encoder("toy", digest, jnp.float32(scale), apply)


def store(tmp_path, mesh, storage="float32"):
    return FeatureStore(tmp_path / "features", mesh, batch_size=12, storage=storage)


def pictures(data, numbers):
    split = probes_features.EvalSet(data, "train").dataset.split
    return split.pixels[numbers].astype(np.float32) / 255


def test_features_are_those_of_the_records_asked_for_and_are_computed_once(tmp_path, mesh, data):
    numbers = np.array([3, 4, 50, 7] + list(range(10, 30)))  # two batches, the last one padded
    first = store(tmp_path, mesh)
    assert first.batch_size == 16  # eight parts
    found = first.get(encoder(), data, "train", numbers, ["pooled", "tokens"])
    expected = pictures(data, numbers)
    np.testing.assert_allclose(found["tokens"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["pooled"], expected[:, 0], rtol=1e-6)
    assert first.computed == 2
    again = store(tmp_path, mesh)
    second = again.get(encoder(), data, "train", numbers, ["tokens"])["tokens"]
    assert isinstance(second, np.memmap) and again.computed == 0
    np.testing.assert_array_equal(second, found["tokens"])


def test_whatever_decides_the_numbers_is_in_the_key(tmp_path, mesh, data):
    numbers = np.arange(4)
    kept = store(tmp_path, mesh)
    kept.get(encoder(), data, "train", numbers, ["tokens"])
    for other in (
        (encoder(digest="b"), data, "train", numbers),
        (encoder(), dataclasses.replace(data, size=4), "train", numbers),
        (encoder(), dataclasses.replace(data, frame_control="blank"), "train", numbers),
        (encoder(), data, "test", numbers),
        (encoder(), data, "train", numbers[:3]),
        (encoder(), data, "train", numbers[::-1]),
    ):
        before = kept.computed
        kept.get(*other, ["tokens"])
        assert kept.computed == before + 1
    before = kept.computed
    faster = dataclasses.replace(data, threads=2, cache="memory", text_length=5)
    kept.get(encoder(), faster, "train", numbers, ["tokens"])
    assert kept.computed == before


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_tokens_are_kept_in_half_the_bytes_and_pooled_features_are_not(
    tmp_path, mesh, data, storage
):
    numbers = np.arange(5)
    found = store(tmp_path, mesh, storage).get(
        encoder(), data, "train", numbers, ["tokens", "pooled"]
    )
    assert found["tokens"].dtype == np.dtype(getattr(ml_dtypes, storage, storage))
    assert found["pooled"].dtype == np.float32
    rounded = pictures(data, numbers).astype(found["tokens"].dtype)
    np.testing.assert_array_equal(
        np.asarray(found["tokens"], np.float32), rounded.astype(np.float32)
    )


@pytest.mark.parametrize("damage", ["bits", "short", "meta"])
def test_damaged_features_are_computed_again(tmp_path, mesh, data, damage, caplog):
    numbers = np.arange(6)
    before = store(tmp_path, mesh).get(encoder(), data, "train", numbers, ["pooled"])["pooled"]
    before = np.array(before)
    (place,) = (tmp_path / "features").iterdir()
    file = place / "features.npy"
    if damage == "bits":
        raw = bytearray(file.read_bytes())
        raw[-3] ^= 16
        file.write_bytes(raw)
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        (place / "meta.json").unlink()
    again = store(tmp_path, mesh)
    with caplog.at_level(logging.WARNING, "jepa"):
        after = again.get(encoder(), data, "train", numbers, ["pooled"])["pooled"]
    assert again.computed == 1 and "computed again" in caplog.text
    np.testing.assert_array_equal(after, before)


def test_what_is_not_finite_is_refused_and_leaves_nothing(tmp_path, mesh, data):
    # Finite in float32, too large for float16.
    for scale, storage, kind in ((1e6, "float16", "tokens"), (np.nan, "float32", "pooled")):
        with pytest.raises(UserError, match="not finite"):
            store(tmp_path, mesh, storage).get(
                encoder(scale, f"{scale}"), data, "train", np.arange(4), [kind]
            )
    assert not list((tmp_path / "features").iterdir())


def test_digests_tell_arrays_apart():
    tree = {"a": jnp.arange(4.0), "b": {"c": jnp.zeros((2, 2), jnp.bfloat16)}}
    digest = probes_features.digest_of(tree)
    assert digest == probes_features.digest_of(jax.tree.map(np.asarray, tree))
    for other in (
        {"a": jnp.arange(4.0).at[3].set(3.0000002), "b": tree["b"]},
        {"a": jnp.arange(4.0).reshape(2, 2), "b": tree["b"]},
        {"d": jnp.arange(4.0), "b": tree["b"]},
    ):
        assert probes_features.digest_of(other) != digest


def test_pixels_are_scaled_down_and_grey_ones_kept_once(tmp_path, mesh, data):
    kept = store(tmp_path, mesh)
    whole = probes_features.of_pixels(8, grey=True)
    found = kept.get(whole, data, "train", np.arange(3), ["pooled"])["pooled"]
    np.testing.assert_allclose(found, pictures(data, np.arange(3)).reshape(3, 64), rtol=1e-6)
    small = probes_features.of_pixels(4, grey=False)
    found = kept.get(small, data, "train", np.arange(3), ["pooled"])["pooled"]
    assert found.shape == (3, 4 * 4 * 3)
    with pytest.raises(UserError, match="has no tokens"):
        kept.get(whole, data, "train", np.arange(3), ["tokens"])


def test_batches_are_permutations_of_whole_batches():
    rows = np.arange(5, 15)
    found = list(probes_features.batches(rows, 4, seed=0, epochs=2))
    assert [len(part) for part in found] == [4] * 4
    for epoch in (found[:2], found[2:]):
        seen = np.concatenate(epoch)
        assert len(set(seen)) == 8 and set(seen) <= set(rows)
    assert not np.array_equal(found[0], found[2])
