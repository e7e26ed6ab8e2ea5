"""Full-size shapes with random weights: the same function, and how much memory it takes."""

import json
import math
import os
import re
import subprocess
import sys

import hugging
import jax
import meta_torch as meta
import numpy as np
import pytest
import torch
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from experiments import convert
from jepa.interop import converted, open_tensors, registry
from jepa.models.attentive_probe import AttentiveProbe
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.vit import VideoTransformer
from jepa.nn.rotary import grid_positions

pytestmark = pytest.mark.slow
# V-JEPA 2's giant, as its config.json has it.
GIANT = {
    "model_type": "vjepa2",
    "architectures": ["VJEPA2Model"],
    "hidden_size": 1408,
    "num_hidden_layers": 40,
    "num_attention_heads": 22,
    "mlp_ratio": 48 / 11,
}


def write_random(directory, config):
    """Writes a published directory of random tensors, one after another."""
    layout = registry.model("v_jepa_2").plan(config).layout
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    pieces = {name: piece.shape for name, (_, piece) in layout.theirs().items()}
    for name, shape in pieces.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in pieces.values():
            file.write(0.02 * rng.standard_normal(math.prod(shape), np.float32))
    return end


def run_convert(source, to):
    """Converts in a process of its own; returns what it prints and the memory it says it had."""
    command = [sys.executable, "-m", "experiments.convert", "--model=v_jepa_2"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    said = subprocess.run(
        [*command, f"--from={source}", f"--to={to}"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    return said, float(re.search(r"at most ([\d.]+) GiB", said)[1]) * 2**30


def test_converting_a_giant_takes_little_more_memory_than_it_has(tmp_path):
    size = write_random(tmp_path / "published", GIANT)
    assert size > 4e9
    for source, to in (("published", "converted"), ("converted", "back")):
        said, peak = run_convert(tmp_path / source, tmp_path / to)
        print(said)
        assert peak <= 1.3 * size
    before, after = (open_tensors(tmp_path / name) for name in ("published", "back"))
    assert set(before) == set(after)
    for name in before:
        assert before.read(name).tobytes() == after.read(name).tobytes()


# Sizes whose heads the conversion knows by their width; side of the table of positions.
META = {
    "v_jepa": {"width": 1024, "depth": 24, "heads": 16, "patch": 16, "side": 14},
    "i_jepa": {"width": 1280, "depth": 32, "heads": 16, "patch": 14, "side": 16},
    "v_jepa_2_1": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
}


@pytest.mark.parametrize("kind", META)
def test_metas_sizes_are_the_same_function(kind, tmp_path):
    """Two frames of a size that is no square and not the table's, for the encoder alone."""
    size, g = META[kind], torch.Generator().manual_seed(0)
    width, depth, heads, patch = (size[k] for k in ("width", "depth", "heads", "patch"))
    cell = (patch, patch) if kind == "i_jepa" else (2, patch, patch)
    parts = {"patch_embed.proj": meta.conv(width, *cell, generator=g)}
    if kind == "v_jepa_2_1":
        parts |= {f"norms_block.{i}": meta.norm(width, g) for i in range(4)}
        parts["patch_embed_img.proj"] = meta.conv(width, 1, patch, patch, generator=g)
    else:
        parts["norm"] = meta.norm(width, g)
    state = meta.named(parts) | meta.blocks("blocks", depth, width, 4 * width, g)
    # As small as trained ones: attention that picks single tokens would blow up rounding.
    state = {name: t * (0.2 if t.ndim > 1 else 1) for name, t in state.items()}
    grid, tables = (1, 2, 3), {"v_jepa": meta.table_3d, "i_jepa": meta.table_2d}
    if kind == "v_jepa_2_1":
        state |= {f"{m}_mod_embed": torch.randn(1, 1, width, generator=g) for m in ("img", "video")}
    else:
        side = size["side"]
        made_for = side if kind == "i_jepa" else (8, side, side)
        state["pos_embed"] = tables[kind](made_for, width)
    branch = "ema_encoder" if kind == "v_jepa_2_1" else "target_encoder"
    torch.save({branch: meta.wrapped(state), "epoch": 1}, tmp_path / "published.pt")
    convert.convert(kind, tmp_path / "published.pt", tmp_path / "converted")
    encoder = VideoTransformer(**converted.about(tmp_path / "converted")["fields"]["encoder"])
    params = converted.load(tmp_path / "converted", part="encoder")

    shape = (1, 1 if kind == "i_jepa" else 2, grid[1] * patch, grid[2] * patch, 3)
    video = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x, places = meta.tokens_of(torch.tensor(video), state, "patch_embed.proj"), None
    if kind == "v_jepa_2_1":
        x = x + state["video_mod_embed"]
        places = meta.places_of(torch.arange(6)[None], grid, 16)
    else:
        x = x + meta.stretched(state["pos_embed"], made_for, grid)
    for i in range(depth):
        x = meta.block(x, state, f"blocks.{i}", heads, places)
    expected = meta.layer_norm(x, state, "norms_block.3" if kind == "v_jepa_2_1" else "norm")
    hugging.assert_close(jax.jit(encoder.apply)({"params": params}, video), expected)


# Two frames of 64 pixels.
LARGE = VJEPA2Config(frames_per_clip=2, crop_size=64, num_hidden_layers=24, num_labels=174)


def large(kind, name, tmp_path):
    """V-JEPA 2's L with transformers' first values: theirs, our parameters and fields, a clip."""
    torch.manual_seed(0)
    theirs = kind._from_config(LARGE, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path / "published")
    convert.convert(name, tmp_path / "published", tmp_path / "converted")
    fields = converted.about(tmp_path / "converted")["fields"]
    video = np.random.default_rng(0).normal(size=(1, 2, 64, 64, 3)).astype(np.float32)
    return theirs, converted.load(tmp_path / "converted"), fields, video


def test_v_jepa_2_large_is_the_same_function(tmp_path):
    theirs, params, fields, video = large(VJEPA2Model, "v_jepa_2", tmp_path)
    context, target = np.arange(11)[None], np.arange(11, 16)[None]
    with torch.no_grad():
        expected = theirs.get_vision_features(hugging.torch_video(video))
        predicted = theirs.predictor(expected, [torch.tensor(context)], [torch.tensor(target)])
    encoder = VideoTransformer(**fields["encoder"])
    tokens = jax.jit(encoder.apply)({"params": params["encoder"]}, video)
    hugging.assert_close(tokens, expected)
    predictor, places = MaskPredictor(**fields["predictor"]), grid_positions((1, 4, 4))
    ours = jax.jit(
        lambda p, x: predictor.apply({"params": p}, x, context, target, places, mask_token=1)[0]
    )(params["predictor"], tokens[:, :11])
    hugging.assert_close(ours, predicted.last_hidden_state)


def test_v_jepa_2_large_s_classifier_is_the_same_function(tmp_path):
    theirs, params, fields, video = large(
        VJEPA2ForVideoClassification, "v_jepa_2_classifier", tmp_path
    )
    encoder, probe = VideoTransformer(**fields["encoder"]), AttentiveProbe(**fields["probe"])
    ours = jax.jit(
        lambda p, v: probe.apply({"params": p["probe"]}, encoder.apply({"params": p["encoder"]}, v))
    )(params, video)
    with torch.no_grad():
        hugging.assert_close(ours, theirs(hugging.torch_video(video)).logits)
