"""The paper's stages, one after another in a workdir, with networks of a few thousand numbers."""

import json

import jax
import numpy as np
import pytest

from configs.vl_jepa import paper
from experiments import train
from jepa.data.world.write import write_world
from jepa.training import metrics

pytestmark = pytest.mark.slow


def tiny(stage, data):
    config = paper.get_config(stage)
    config.dtype = "float32"
    config.data.update(
        size=32, tokenizer="minilm", query_tokenizer="minilm", text_length=16, workers=0, threads=1
    )
    config.model.shared_dim = 16
    config.model.x_encoder.update(width=24, depth=1, heads=2, weights="", remat="none")
    config.model.predictor.update(
        width=24, depth=1, heads=2, kv_heads=2, mlp_width=32, vocab=30_522, weights="", layers=(),
        remat="none",
    )  # fmt: skip
    config.model.y_encoder.update(
        tower="transformer", weights="", vocab=30_522, width=16, depth=1, heads=2, remat="none"
    )
    for phase in config.phases:
        phase["steps"] = 2
        phase["train"]["global_batch"] = 32 if phase["name"] == "stage_3" else 8
        phase["data"]["mixture"] = ((str(data), 1.0),)
        phase["data"].pop("query_length", None)
    config.data.mixture = ((str(data), 1.0),)
    config.train.update(steps=2 * len(config.phases), global_batch=8, log_every=1, save_every=0)
    return config


def test_stages_go_on_in_one_workdir(tmp_path, capfd):
    data, run = tmp_path / "world", tmp_path / "run"
    write_world(data, clips={"train": 8}, processes=1, progress=False)
    first = train.main(tiny("stage_1", data), run)
    assert first.step == 2
    second = train.main(tiny("stage_2", data), run)
    assert second.step == 4
    # Frozen so far; stage 3 trains it, and SFT not.
    before = jax.tree.map(np.asarray, second.state.params["x_encoder"])
    kept = list((data / "cache").glob("video_features-*"))
    assert len(kept) == 1  # of eight frames; stage 1 keeps none
    last = train.main(tiny("sft", data), run)
    assert last.finished and last.step == 8
    moved = jax.tree.map(
        lambda old, new: bool(np.any(old != new)), before, last.state.params["x_encoder"]
    )
    assert all(jax.tree.leaves(moved))
    assert len(list((data / "cache").glob("video_features-*"))) == 2  # SFT's, of what it became
    said = "".join(capfd.readouterr())
    total = metrics.count(last.state.params)
    assert f"of {total:,} parameters" in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == set(range(1, 9))
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
