"""What is written beside the tensors, and disks that take nothing."""

import contextlib
import json
import resource
import shutil
import signal

import numpy as np
import pytest

from jepa.errors import UserError
from jepa.interop import converted, layout, open_tensors, saving
from jepa.interop.layout import Layout


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("types", "dtype", "expected"),
    [
        (("float32", "float32"), None, "float32"),
        (("bfloat16", "bfloat16"), None, "bfloat16"),
        (("float32", "float32"), "float16", "float16"),
        (("bfloat16", "float32"), None, "float32"),  # loading must not round the other
        (("bfloat16", "float16"), None, "float32"),
        (("float64", "float32"), None, "float64"),
    ],
)
def test_a_config_names_the_type_of_the_tensors(tmp_path, types, dtype, expected):
    table = Layout(
        {name: layout.leaf(name, (2,)) for name in "ab"},
        derived={
            "positions": lambda: random(2),
            "ids": lambda: np.arange(2),
        },
    )
    params = {name: random(2).astype(kind) for name, kind in zip("ab", types, strict=True)}
    said = {"dtype": "bfloat16", "text_config": {"torch_dtype": "float16", "x": 1}, "more": [1]}
    saving.save(tmp_path / "to", params, table, said, dtype=dtype)
    written = json.loads((tmp_path / "to/config.json").read_text())
    inner = {"torch_dtype": expected, "x": 1}
    assert written == {"dtype": expected, "text_config": inner, "more": [1]}
    found = open_tensors(tmp_path / "to")
    assert found.dtype("positions") == np.dtype(expected) and found.dtype("ids") == np.int64
    for kept in ({}, {"torch_dtype": None}, {"dtype": {"a": 1}}):
        saving.save(tmp_path / "kept", params, table, kept, dtype=dtype)
        assert json.loads((tmp_path / "kept/config.json").read_text()) == kept
        shutil.rmtree(tmp_path / "kept")


@contextlib.contextmanager
def small_files(most):
    """The operating system refuses, for real, bytes of a file beyond some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, heard)


@pytest.mark.parametrize("form", ["converted", "published"])
def test_a_disk_that_refuses_is_told_in_one_sentence(tmp_path, form):
    params, table = {"a": random(400, 400)}, Layout({"a": layout.leaf("a", (400, 400))})

    def write():
        if form == "converted":
            converted.save(tmp_path / "to", params, {"model": "x"})
        else:
            saving.save(tmp_path / "to", params, table, {})

    with (
        small_files(100_000),
        pytest.raises(UserError, match="to cannot be written: File too large; free space or"),
    ):
        write()
    assert not list(tmp_path.iterdir())
    write()


def test_what_no_disk_refused_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    def save(*_, **__):
        raise ValueError("no such thing")

    monkeypatch.setattr(converted.ocp.Checkpointer, "save", save)
    with pytest.raises(ValueError, match="no such thing"):
        converted.save(tmp_path / "to", {"a": random(2)}, {})
    assert not list(tmp_path.iterdir())
