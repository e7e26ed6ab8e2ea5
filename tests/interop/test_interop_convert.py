"""What `experiments.convert` does with what a user says: files by name, settings, paths."""

import json
import re
from pathlib import Path

import hugging
import numpy as np
import pytest
import text_models

from experiments import convert, export
from jepa.errors import UserError
from jepa.interop import (
    converted,
    layout,
    load_weights,
    loading,
    locate,
    parameters,
    paths,
    registry,
    saving,
    sentence,
    starting,
    trained,
)
from jepa.interop import v_jepa_2 as v_jepa_2_files
from jepa.interop.registry import Settings
from jepa.methods import text_towers
from jepa.methods.vl_jepa import default_model


def test_a_file_brings_what_its_directory_holds(tmp_path):
    """By the name of its file a model is the same as by its directory: maps, pooling, prompts."""
    published, file = tmp_path / "published", tmp_path / "published" / "model.safetensors"
    text_models.save_gemma(published, text_models.gemma(layers=1), text_models.maps())
    (published / "tokenizer.json").write_text("{}")
    convert.convert("embedding_gemma", file, tmp_path / "converted")
    about = converted.about(tmp_path / "converted")
    assert about["fields"]["tower"]["dense_width"] == 48
    convert.convert("embedding_gemma", tmp_path / "converted", tmp_path / "back")
    for folder in ("", "2_Dense", "3_Dense"):
        assert hugging.tensors(tmp_path / "back" / folder) == hugging.tensors(published / folder)
    for name in ("tokenizer.json", sentence.MODULES, sentence.PROMPTS, "1_Pooling/config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (published / name).read_bytes()
    pooling = '{"pooling_mode_cls_token": true}'
    (published / "1_Pooling" / "config.json").write_text(pooling)
    with pytest.raises(UserError, match="pools by cls_token"):
        convert.convert("embedding_gemma", file, tmp_path / "other")


SIZES = {"width": 24, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "patch": 4, "tubelet": 2}
OURS = {**SIZES, "rope": "tiled", "positions": "none", "gelu": "exact", "pretrain_grid": None}
PREDICTOR = {"features": 24, "width": 12, "depth": 1, "heads": 2, "mlp_ratio": 2.0}


@pytest.fixture(scope="module")
def v_jepa_2(tmp_path_factory):
    """A published directory of V-JEPA 2 without `transformers`, and the same converted."""
    directory = tmp_path_factory.mktemp("v_jepa_2")
    sizes = v_jepa_2_files._sizes(SIZES, {**PREDICTOR, "mask_tokens": 2})
    config = {"model_type": "vjepa2", "crop_size": 256, "hidden_act": "gelu", **sizes}
    plan = registry.model("v_jepa_2").plan(config)
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(size=leaf.shape).astype("f") for path, leaf in plan.layout.leaves.items()
    }
    tree = loading.unflatten(params)
    saving.save(directory / "published", tree, plan.layout, config)
    convert.convert("v_jepa_2", directory / "published", directory / "converted")
    return directory, tree


def exported(path, params, fields, part="encoder"):
    about = {"method": "v_jepa_2", "part": part, "fields": json.dumps(fields)}
    parameters.save(path, params, about)
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope", "rotation"),
        ("gelu", "tanh"),
        ("positions", "sincos"),
        ("pretrain_grid", 16),
        ("heads", 4),
    ],
)
@pytest.mark.parametrize("form", ["published", "converted"])
def test_another_function_of_the_same_shapes_is_no_part_of_a_model(
    v_jepa_2, tmp_path, field, value, form
):
    directory, params = v_jepa_2
    file = exported(tmp_path / "a.safetensors", params["encoder"], {**OURS, field: value})
    message = f"trained with {field}={value!r}, and the encoder of .*{form} is made with "
    with pytest.raises(UserError, match=message + re.escape(repr(OURS[field]))):
        convert.convert("v_jepa_2", file, tmp_path / "out", like=directory / form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taps", [(), (1,)])
def test_an_encoder_without_taps_begins_one_without(tmp_path, taps):
    """A config says (), a file of `experiments.export` [], and a field may be None."""
    file = exported(tmp_path / "a.safetensors", {"a": np.ones(2)}, {**OURS, "taps": list(taps)})
    found = parameters.load_into(file, {"a": np.zeros(2)}, {"taps": taps}, "config.weights")
    np.testing.assert_array_equal(starting.read(found)["a"], np.ones(2))
    with pytest.raises(UserError, match="was made with taps="):
        parameters.load_into(file, {"a": np.zeros(2)}, {"taps": (2,)}, "config.weights")


def test_taps_and_pixels_are_compared_too(tmp_path):
    """Of V-JEPA 2.1 and of image towers, with nothing but what is said of both."""
    plan = registry.Plan(layout.Layout({}), {"encoder": {"taps": [2, 4], "resize": "cubic"}}, {})
    network, base = {"a": np.zeros(2)}, {"encoder": {"a": np.zeros(2)}}

    def placed(**said):
        source, like = Path("run.safetensors"), Path("published")
        return trained.placed(network, said, (plan, base), source, like)

    assert placed(taps=(2, 4), resize="cubic", mlp_ratio=3.0)["encoder"] == network
    with pytest.raises(UserError, match=r"taps=\(1, 4\), and the encoder .* with \(2, 4\)"):
        placed(taps=(1, 4))
    with pytest.raises(UserError, match="resize='linear', .* train with resize='cubic'"):
        placed(resize="linear")


def test_settings_on_the_way_out_say_what_changes_no_network(v_jepa_2, tmp_path):
    directory, params = v_jepa_2
    file = exported(tmp_path / "a.safetensors", params["encoder"], {**OURS, "remat": "full"})
    run = {"encoder": OURS, "predictor": {**PREDICTOR, **OURS, "mask_token_init": "zeros"}}
    run["predictor"].update(PREDICTOR, mask_tokens=2)
    whole = exported(tmp_path / "run.safetensors", params, run, "")
    ways = {
        "back": {"source": directory / "converted"},
        "like": {"source": file, "like": directory / "published"},
        "like_converted": {"source": file, "like": directory / "converted"},
        "run": {"source": whole},
    }
    for name, way in ways.items():
        wider = Settings(values={"crop_size": 384})
        convert.convert("v_jepa_2", to=tmp_path / name, settings=wider, **way)
        assert json.loads((tmp_path / name / "config.json").read_text())["crop_size"] == 384
        assert hugging.tensors(tmp_path / name) == hugging.tensors(directory / "published")
        for settings, complaint in (
            (Settings("encoder", {"crop_size": 8}), "--branch=encoder chooses .* leave it out"),
            (Settings(values={"crop": 384}), "--set crop: there is no such key"),
            (Settings(values={"jepa_x": 1}), "--set jepa_x: there is no such key"),
            (
                Settings(values={"crop_size": 8, "hidden_act": "gelu_pytorch_tanh"}),
                "would make gelu of the encoder 'tanh', and .* made with 'exact'",
            ),
            (
                Settings(values={"crop_size": 8, "num_attention_heads": 4}),
                "would make heads of the encoder 4, and .* made with 2",
            ),
        ):
            with pytest.raises(UserError, match=complaint):
                convert.convert("v_jepa_2", to=tmp_path / "no", settings=settings, **way)
            assert not (tmp_path / "no").exists()


def test_paths_of_a_command_line_begin_where_one_stands(v_jepa_2, tmp_path, monkeypatch, capsys):
    """As in docs/weights.md, with the directory set that configs' paths begin at."""
    directory, params = v_jepa_2
    exported(tmp_path / "run.safetensors", params["encoder"], OURS)
    (tmp_path / "theirs").symlink_to(directory / "published")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(paths.ROOT, str(directory))
    convert.main(["--model=v_jepa_2", "--from=run.safetensors", "--like=theirs", "--to=mine"])
    assert hugging.tensors(tmp_path / "mine") == hugging.tensors(directory / "published")
    convert.main(["--model=v_jepa_2", "--from=theirs", "--to=ours"])
    assert "ours" in capsys.readouterr().out
    # What a config names lies below that directory, and so does what is loaded by hand.
    about = converted.about(locate("converted"))
    assert about["fields"]["encoder"]["width"] == 24
    loaded = load_weights("converted", part="encoder")
    np.testing.assert_array_equal(loaded["norm"]["bias"], params["encoder"]["norm"]["bias"])


def test_a_text_tower_leaves_with_what_it_is(tmp_path):
    """Near-sighted layers have no shape; `experiments.export` says how far they see."""
    model = default_model()
    for name, published in text_towers.TOWERS.items():
        model.y_encoder.tower = name
        said = json.loads(json.dumps(export.fields_of(model, "y_encoder/tower")))
        assert published.module(**said) == published.module(**published.fields)
    model.y_encoder.update(tower="embedding_gemma", dense_layers=False)
    assert export.fields_of(model, "y_encoder/tower")["dense_width"] is None
    assert export.fields_of(model, "x_encoder")["rope"] == model.x_encoder.rope
    assert export.fields_of(model, "")["predictor"]["heads"] == 4
    assert export.fields_of(model, "y_encoder/head") is None

    published = tmp_path / "published"
    text_models.save_gemma(published, text_models.gemma(layers=1), text_models.maps())
    plan, tree = trained.frame(registry.model("embedding_gemma"), published)
    fields = {**plan.fields["tower"], "max_length": 7}
    file = exported(tmp_path / "a.safetensors", starting.read(tree["tower"]), fields)
    convert.convert("embedding_gemma", file, tmp_path / "out", like=published)
    assert hugging.tensors(tmp_path / "out") == hugging.tensors(published)
    exported(file, starting.read(tree["tower"]), {**fields, "window": 5})
    with pytest.raises(UserError, match="trained with window=5, and the tower of .* made with "):
        convert.convert("embedding_gemma", file, tmp_path / "no", like=published)
