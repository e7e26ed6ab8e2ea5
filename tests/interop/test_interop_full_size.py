"""Full-size shapes with random weights: the same function, and how much memory it takes."""

import json
import math
import os
import re
import subprocess
import sys

import hugging
import jax
import numpy as np
import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from experiments import convert
from jepa.interop import converted, open_tensors, registry
from jepa.models.vit import VideoTransformer

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


def test_v_jepa_2_large_is_the_same_function(tmp_path):
    config = VJEPA2Config(frames_per_clip=2, crop_size=64, num_hidden_layers=24)
    torch.manual_seed(0)
    model = VJEPA2Model._from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path / "published")
    convert.convert("v_jepa_2", tmp_path / "published", tmp_path / "converted")
    encoder = VideoTransformer(**converted.about(tmp_path / "converted")["fields"]["encoder"])
    params = converted.load(tmp_path / "converted", part="encoder")
    video = np.random.default_rng(0).normal(size=(1, 2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model.get_vision_features(hugging.torch_video(video))
    hugging.assert_close(jax.jit(encoder.apply)({"params": params}, video), expected)
