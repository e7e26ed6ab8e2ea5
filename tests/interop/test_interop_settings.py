"""What `--set` and a `config.json` of ours say: types and ranges, before anything is computed."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import cli, convert
from jepa.errors import UserError
from jepa.interop import registry
from jepa.interop.registry import Settings

WIDTH, P_WIDTH = 24, 12


def layers(prefix, width, names):
    found = {}
    for i in range(2):
        found[f"{prefix}.{i}.attn.qkv.weight"] = (3 * width, width)
        found[f"{prefix}.{i}.mlp.fc1.weight"] = (2 * width, width)
    return found | names


def checkpoint(kind):
    """Names and shapes of what sizes are told from; the file is refused before the others."""
    cell = (4, 4) if kind == "i_jepa" else (2, 4, 4)
    cells = 9 if kind == "i_jepa" else 72
    encoder = layers("blocks", WIDTH, {"patch_embed.proj.weight": (WIDTH, 3, *cell)})
    encoder["pos_embed"] = (1, cells, WIDTH)
    if kind == "v_jepa_2_1":
        encoder |= {"norms_block.0.weight": (WIDTH,), "norms_block.1.weight": (WIDTH,)}
    of = {"predictor_norm.weight": (P_WIDTH,), "predictor_proj.weight": (WIDTH, P_WIDTH)}
    predictor = layers("predictor_blocks", P_WIDTH, of)
    return {f"target_encoder.{k}": v for k, v in encoder.items()} | {
        f"predictor.{k}": v for k, v in predictor.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    for kind in ("i_jepa", "v_jepa", "v_jepa_2", "v_jepa_2_1"):
        arrays = {name: np.zeros(shape, np.float32) for name, shape in checkpoint(kind).items()}
        save_file(arrays, directory / f"{kind}.safetensors")
    return directory


WHOLE = "must be a positive whole number"
GIVEN = {
    "i_jepa": ["encoder.heads=2", "predictor.heads=2"],
    "v_jepa": ["encoder.heads=2", "predictor.heads=2"],
    "v_jepa_2": ["crop_size=12", "num_attention_heads=2"],
    "v_jepa_2_1": ["encoder.heads=2", "encoder.taps=[1,2]", "encoder.pretrain_grid=5"],
}
WRONG = [
    *((kind, "encoder.heads=four", WHOLE) for kind in ("i_jepa", "v_jepa", "v_jepa_2_1")),
    *((kind, "encoder.heads=0", WHOLE) for kind in ("i_jepa", "v_jepa", "v_jepa_2_1")),
    ("v_jepa", "encoder.heads=true", WHOLE),
    ("v_jepa", "encoder.heads=2.0", WHOLE),
    ("v_jepa", "encoder.heads=5", "5 heads do not divide a width of 24"),
    ("v_jepa", "predictor.mask_tokens=0", WHOLE),
    ("v_jepa", "predictor.width=wide", "must be of the kind of 12"),
    ("v_jepa", "encoder.mlp_ratio=-1", "must be a positive number"),
    ("v_jepa", "encoder.mlp_ratio=NaN", "must be of the kind of 2.0"),
    ("v_jepa", "encoder.gelu=silu", "must be 'exact' or 'tanh'"),
    ("v_jepa", "encoder.rope=round", "must be 'rotation' or 'tiled' or 'none'"),
    ("v_jepa", "encoder.table_grid=null", "the model has a grid"),
    ("v_jepa", "encoder.table_grid=[8,3]", "three positive whole numbers"),
    ("v_jepa", "encoder=5", "must be of the kind of"),
    ("v_jepa", "encoder={}", "encoder.heads cannot be told"),
    ("v_jepa_2_1", "encoder.taps=6", "must be a list of rising numbers of layers"),
    ("v_jepa_2_1", "encoder.taps=[2,1]", "must be a list of rising numbers of layers"),
    ("v_jepa_2_1", "encoder.taps=[1,3]", "its last must be the last layer, 2"),
    ("v_jepa_2_1", "encoder.taps=[2]", "has norms for 2 layers"),
    ("v_jepa_2_1", "encoder.taps=null", r"say it with --set encoder.taps=\[6,12,18,24\]"),
    ("v_jepa_2_1", "encoder.image_tokenizer=1", "must be of the kind of True"),
    ("v_jepa_2", "num_attention_heads=four", WHOLE),
    ("v_jepa_2", "num_attention_heads=0", WHOLE),
    ("v_jepa_2", "mlp_ratio=wide", "must be of the kind of 2.0"),
    ("v_jepa_2", "mlp_ratio=-2", "must be a positive number"),
    ("v_jepa_2", "pred_hidden_size=null", "must be of the kind of 12"),
]


@pytest.mark.parametrize(("kind", "text", "complaint"), WRONG)
def test_what_cannot_be_is_said_in_a_sentence(files, tmp_path, kind, text, complaint):
    values = dict(map(convert._setting, [*GIVEN[kind], text]))
    with pytest.raises(UserError, match=complaint):
        convert.convert(
            kind,
            files / f"{kind}.safetensors",
            tmp_path / "to",
            settings=Settings(values=values),
        )
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_that_sentence(files, tmp_path, capsys):
    source = f"--from={files / 'v_jepa.safetensors'}"
    arguments = ["--model=v_jepa", source, f"--to={tmp_path / 'to'}"]
    arguments += ["--set=predictor.heads=2", "--set=encoder.heads=four"]
    assert cli.exit_code(lambda: convert.main(arguments)) == 2
    said = capsys.readouterr().err
    assert said == "error: --set: encoder.heads is 'four'; it must be a positive whole number\n"


ENCODER = {"width": 24, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "patch": 4, "tubelet": 2}
OLDER = {**ENCODER, "positions": "sincos_uniform", "table_grid": [8, 3, 3]}
TEXT = {"vocab": 9, "width": 24, "depth": 1, "heads": 2, "max_length": 5, "mlp_ratio": 2.0}
PROBE = {"classes": 3, "depth": 1, "heads": 2, "mlp_ratio": 2.0}
OF_OURS = {
    "v_jepa": ("encoder", {"encoder": OLDER}),
    "i_jepa": ("encoder", {"encoder": {**OLDER, "positions": "sincos_2d_columns", "tubelet": 1}}),
    "v_jepa_2_1": ("encoder", {"encoder": {**ENCODER, "taps": [1, 2]}}),
    "pe_text": ("tower", {"tower": TEXT}),
    "v_jepa_2_probe": ("probe", {"width": 24, "probe": PROBE}),
}


@pytest.mark.parametrize("kind", list(OF_OURS))
def test_a_config_json_of_ours_is_checked_before_it_is_used(kind):
    name, sections = OF_OURS[kind]
    config = json.loads(json.dumps({"model_type": kind, **sections}))
    plan = registry.model(kind).plan(config)
    assert all(math.prod(leaf.shape) > 0 for leaf in plan.layout.leaves.values())
    for spoilt, complaint in (
        ({k: v for k, v in config.items() if k != name}, f"there is no section '{name}'"),
        ({**config, name: [1]}, f"there is no section '{name}'"),
        (
            {**config, name: {**config[name], "depth": "deep"}},
            f"{name}.depth is 'deep'; it {WHOLE}",
        ),
    ):
        with pytest.raises(UserError, match=complaint):
            registry.model(kind).plan(spoilt)
    for key in config[name]:
        lacking = {k: v for k, v in config[name].items() if k != key}
        with pytest.raises(UserError, match=f"config.json: {name}.{key} is missing"):
            registry.model(kind).plan({**config, name: lacking})
