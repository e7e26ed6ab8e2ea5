"""Opening, reading in pieces and writing checkpoints, and what can be wrong with them."""

import json
import pickle
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments import cli, convert
from jepa.errors import UserError
from jepa.interop import (
    converted,
    layout,
    loading,
    open_tensors,
    parameters,
    registry,
    saving,
    starting,
)
from jepa.interop.layout import Layout


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def a_layout(depth=3, width=8, heads=2):
    """A stack with everything that a table can say: turned, fused, joined, stacked."""

    def layer(i):
        names = [f"layers.{i}.{part}" for part in "qkvo"]
        return {
            **layout.under("attention", layout.attention(names, width, heads)),
            **layout.under("mlp", layout.linear(f"layers.{i}.mlp", width, 3 * width)),
        }

    return Layout(
        {
            "patches/kernel": layout.leaf("conv", (width, 3, 2, 2), order=(2, 3, 1, 0)),
            **layout.under("table", layout.embedding("words", 12, width)),
            **layout.stacked("blocks", depth, layer),
        }
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A file with the tensors of `a_layout`."""
    table = a_layout()
    tensors = {
        name: random(*piece.shape, seed=i)
        for i, (name, (_, piece)) in enumerate(table.theirs().items())
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return table, tensors, path


def test_a_stack_is_put_together_as_modules_have_it(checkpoint):
    table, tensors, path = checkpoint
    params = loading.load(open_tensors(path), table)
    qkv = params["blocks"]["attention"]["qkv"]["kernel"]
    assert qkv.shape == (3, 8, 2, 3, 4)
    for i in range(3):
        for part, name in enumerate("qkv"):
            matrix = tensors[f"layers.{i}.{name}.weight"]
            np.testing.assert_array_equal(qkv[i, :, 1, part], matrix[4:].T)
        mlp = params["blocks"]["mlp"]["kernel"][i]
        np.testing.assert_array_equal(mlp, tensors[f"layers.{i}.mlp.weight"].T)
    kernel = tensors["conv"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["patches"]["kernel"], kernel)


def test_saving_undoes_loading(checkpoint, tmp_path):
    table, tensors, path = checkpoint
    params = loading.load(open_tensors(path), table)
    saving.save(tmp_path / "back", params, table, {"a": 1}, most_bytes=1500)
    files = sorted(file.name for file in (tmp_path / "back").iterdir())
    assert files[0] == "config.json" and files[-1] == "model.safetensors.index.json"
    assert len(files) > 3
    for back in (open_tensors(tmp_path / "back"),):
        assert set(back) == set(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(back.read(name), tensor)
    # What others read is what we wrote.
    with safe_open(tmp_path / "back" / files[1], "np") as file:
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(file.get_tensor(name), tensors[name])


SPECS = {
    "patches/kernel": PartitionSpec(None, None, None, "fsdp"),
    "table/embedding": PartitionSpec("tensor", None),
    "blocks/attention/qkv/kernel": PartitionSpec(None, "fsdp", "tensor"),
    "blocks/attention/qkv/bias": PartitionSpec(None, "tensor"),
    "blocks/attention/out/kernel": PartitionSpec(None, "tensor", None, "fsdp"),
    "blocks/mlp/kernel": PartitionSpec(None, "fsdp", "tensor"),
}


def sharded(table):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    shardings = {
        path: NamedSharding(mesh, SPECS.get(path, PartitionSpec())) for path in table.leaves
    }
    return loading.unflatten(shardings)


def test_shards_are_read_into_their_places(checkpoint):
    table, _, path = checkpoint
    whole = loading.load(open_tensors(path), table)
    shardings = sharded(table)
    got = loading.load(open_tensors(path), table, shardings=shardings, dtype="bfloat16")
    jax.tree.map(lambda a, s: a.sharding == s or pytest.fail(f"{a.sharding}"), got, shardings)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("bfloat16")), got, whole)


class Counting:
    """Tensors that note what is read of them."""

    def __init__(self, tensors):
        self._tensors, self.bytes, self.rows = tensors, 0, {}

    def __getattr__(self, name):
        return getattr(self._tensors, name)

    def __iter__(self):
        return iter(self._tensors)

    def __contains__(self, name):
        return name in self._tensors

    def read(self, name, rows=slice(None)):
        found = self._tensors.read(name, rows)
        self.bytes += found.nbytes
        self.rows.setdefault(name, []).append(found.shape[0])
        return found


def test_a_process_reads_the_rows_it_holds(checkpoint):
    """One device of eight, as of a process of a pod."""
    table, _, path = checkpoint
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",))
    first = NamedSharding(mesh, PartitionSpec("tensor", None))
    counting = Counting(open_tensors(path))
    part = table.leaves["table/embedding"]
    place = (slice(0, 6), slice(0, 8))
    got = loading._fill(counting, part, [place], np.dtype(np.float32))
    np.testing.assert_array_equal(got[0], counting._tensors.read("words.weight")[:6])
    assert counting.rows == {"words.weight": [6]}
    # Both devices' rows are read at once.
    loading._sharded(counting, part, first, np.dtype(np.float32))
    assert counting.rows == {"words.weight": [6, 12]}


@pytest.mark.parametrize("cut", [False, True])
def test_beyond_the_shards_the_host_holds_at_most_two_tensors(tmp_path, cut):
    table = a_layout(depth=4, width=512)
    names = table.theirs()
    tensors = {name: np.zeros(piece.shape, np.float32) for name, (_, piece) in names.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    largest = max(tensor.nbytes for tensor in tensors.values())
    total = sum(tensor.nbytes for tensor in tensors.values())
    del tensors
    shardings = sharded(table) if cut else None
    opened = open_tensors(tmp_path / "model.safetensors")
    tracemalloc.start()
    try:
        counting = Counting(opened)
        params = loading.load(counting, table, shardings=shardings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(jax.tree.leaves(params)) == len(table.leaves)
    assert counting.bytes == total  # each tensor once, whatever the number of shards
    assert total <= peak <= total + 2 * largest


def test_every_tensor_is_accounted_for(checkpoint, tmp_path):
    table, tensors, _ = checkpoint
    path = tmp_path / "other.safetensors"
    extra = {**tensors, **{f"head.{i}": random(2) for i in range(7)}}
    del extra["layers.0.q.bias"], extra["layers.1.q.bias"]
    extra["words.weight"] = random(11, 8)
    save_file(extra, path)
    with pytest.raises(UserError) as error:
        loading.load(open_tensors(path), table)
    for said in (
        "2 tensors are missing (layers.0.q.bias, layers.1.q.bias)",
        "7 tensors are unknown (head.0, head.1, head.2, head.3, head.4 and 2 more)",
        "1 tensor is of another shape (words.weight (11, 8) instead of (12, 8))",
    ):
        assert said in str(error.value)
    save_file({**tensors, "head.0": random(2), "same": tensors["words.weight"]}, path)
    lenient = Layout(table.leaves, ignored=(r"head\..*",), tied={"same": "words.weight"})
    loading.load(open_tensors(path), lenient)
    save_file({**tensors, "same": tensors["words.weight"] + 1}, path)
    with pytest.raises(UserError, match="same differs from words.weight"):
        loading.load(open_tensors(path), lenient)


def test_mixed_types_need_a_choice(checkpoint, tmp_path):
    table, tensors, _ = checkpoint
    tensors["layers.1.q.weight"] = tensors["layers.1.q.weight"].astype(np.float16)
    save_file(tensors, tmp_path / "mixed.safetensors")
    opened = open_tensors(tmp_path / "mixed.safetensors")
    with pytest.raises(UserError, match="mixes float16, float32 .* --dtype"):
        loading.load(opened, table)
    params = loading.load(opened, table, dtype="float32")
    assert params["blocks"]["attention"]["qkv"]["kernel"].dtype == np.float32


def test_damaged_and_foreign_files(checkpoint, tmp_path):
    _, _, path = checkpoint
    raw = path.read_bytes()
    header = int.from_bytes(raw[:8], "little")
    bad = tmp_path / "bad.safetensors"
    for content, complaint in (
        (raw[:-1], "is truncated: it has"),
        (raw[: 8 + header // 2], "beginning of one"),
        (raw[:5], "beginning of one"),
        (raw + b"0", "is damaged: its tensors do not fill it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "cannot be read as safetensors"),
        ((4).to_bytes(8, "little") + b"{abc" + bytes(9), "its header is no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        (raw.replace(b'"F32"', b'"F99"', 1), "says of .* what cannot be"),
        (raw.replace(b"[12,8]", b"[13,8]", 1), "other bytes than its shape"),
    ):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            open_tensors(bad)
    with pytest.raises(UserError, match="does not exist"):
        open_tensors(tmp_path / "nothing.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has neither model.safetensors nor"):
        open_tensors(tmp_path / "empty")


def test_an_index_that_does_not_fit_its_files(checkpoint, tmp_path):
    table, tensors, path = checkpoint
    params = loading.load(open_tensors(path), table)
    saving.save(tmp_path / "cut", params, table, {}, most_bytes=1500)
    index = tmp_path / "cut" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    weights = good["weight_map"]
    name, file = next(iter(weights.items()))
    other = next(f for f in weights.values() if f != file)
    for weight_map, complaint in (
        (weights | {"ghost": file}, "places ghost in"),
        ({n: f for n, f in weights.items() if n != name}, f"holds {name}, which"),
        (weights | {name: other}, "which has no such tensor"),
        (weights | {name: "../secret"}, "no weight_map of names to files beside it"),
        (None, "no weight_map"),
        (weights | {name: "gone.safetensors"}, "gone.safetensors cannot be read"),
    ):
        index.write_text(json.dumps({**good, "weight_map": weight_map}))
        with pytest.raises(UserError, match=complaint):
            open_tensors(tmp_path / "cut")
    index.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        open_tensors(tmp_path / "cut")


class Evil:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def test_torch_files_are_read_without_running_them(tmp_path, capsys):
    path = tmp_path / "model.pt"
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = {
        "turned": base.transpose(0, 2),
        "part": base[1],
        "half": base.bfloat16(),
        "number": torch.tensor(3),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    torch.save({"net": state, "list": [torch.ones(2)], "epoch": 1, "size": base.shape}, path)
    found = open_tensors(path)
    assert set(found) == {f"net.{name}" for name in state} | {"list.0"}
    for name, tensor in state.items():
        got = found.read(f"net.{name}")
        assert got.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(got.astype(np.float32), tensor.detach().float())
    rows = found.read("net.turned", slice(1, 3))
    np.testing.assert_array_equal(rows, state["turned"][1:3])

    torch.save({"net": state, "evil": Evil()}, path)
    with pytest.raises(
        UserError, match="would run __builtin__.print when loaded, which is refused"
    ):
        open_tensors(path)
    assert capsys.readouterr().out == ""


def test_torch_files_that_are_damaged_or_old(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(1000)}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        open_tensors(path)
    torch.save({"a": torch.ones(10)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        open_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(UserError, match="without data.pkl"):
        open_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="holds no tensors by name"):
        open_tensors(path)


def test_nothing_half_written_and_nothing_overwritten(checkpoint, tmp_path):
    table, _, path = checkpoint
    params = loading.load(open_tensors(path), table)
    broken = jax.tree.map(np.copy, params)
    del broken["table"]
    with pytest.raises(UserError, match="the parameter table/embedding .* is missing"):
        saving.save(tmp_path / "to", broken, table, {})
    broken["table"] = {"embedding": random(3, 3)}
    with pytest.raises(UserError, match=r"has shape \(3, 3\) instead of \(12, 8\)"):
        saving.save(tmp_path / "to", broken, table, {})
    params["table"]["more"] = random(2)
    with pytest.raises(UserError, match="table/more has no place"):
        saving.save(tmp_path / "to", params, table, {})
    del params["table"]["more"]
    with pytest.raises(TypeError):
        saving.save(tmp_path / "to", params, table, {"not JSON": object()})
    assert not list(tmp_path.glob("to*"))
    saving.save(tmp_path / "to", params, table, {})
    for write in (
        lambda: saving.save(tmp_path / "to", params, table, {}),
        lambda: converted.save(tmp_path / "to", params, {}),
    ):
        with pytest.raises(UserError, match="exists already"):
            write()


def test_converted_directories_are_read_whole_and_in_parts(checkpoint, tmp_path):
    table, _, path = checkpoint
    params = {"encoder": loading.load(open_tensors(path), table), "other": {"a": random(3)}}
    where = tmp_path / "converted"
    about = {"model": "x", "fields": {"encoder": {"taps": [1, 2], "heads": 2}}}
    converted.save(where, params, about)
    jax.tree.map(np.testing.assert_array_equal, converted.load(where), params)
    assert converted.about(where)["fields"]["encoder"]["taps"] == (1, 2)
    shardings = sharded(table)
    encoder = parameters.load(where, part="encoder", shardings=shardings, dtype="bfloat16")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype("bfloat16")),
        encoder,
        params["encoder"],
    )
    jax.tree.map(lambda a, s: a.sharding == s or pytest.fail(f"{a.sharding}"), encoder, shardings)
    with pytest.raises(UserError, match="no parameters 'predictor'; it has encoder, other"):
        converted.load(where, part="predictor")
    shapes = jax.eval_shape(lambda: params["encoder"])
    found = starting.read(parameters.load_into(where, shapes, {"heads": 2}, "config.weights"))
    jax.tree.map(np.testing.assert_array_equal, found, params["encoder"])
    with pytest.raises(UserError, match="heads=2 and the config says 4"):
        parameters.load_into(where, shapes, {"heads": 4}, "config.weights")
    with pytest.raises(UserError, match="is no converted checkpoint; make one"):
        parameters.load(tmp_path)


def test_the_command_line(tmp_path, capsys):
    convert.main(["--list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in registry.names())
    for arguments, complaint in (
        (["--model=v_jepa_2"], "--from is needed"),
        (["--model=v_jepa_9", "--from=a", "--to=b"], "there is no model 'v_jepa_9'"),
        (["--model=v_jepa_2", "--from=a", f"--to={tmp_path}"], "exists already"),
        (["--model=v_jepa_2", "--from=a", "--to=b"], "a cannot be read: it does not exist"),
        (["--model=v_jepa_2", "--from=a", "--to=b", "--set=x"], "--set x: write KEY=VALUE"),
        (["--model=v_jepa_2", "--from=a", "--to=b", "--dtype=int8"], "--dtype"),
    ):
        assert cli.exit_code(lambda arguments=arguments: convert.main(arguments)) == 2
        assert complaint in capsys.readouterr().err
