"""The paper's stages of VL-JEPA: built as shapes alone, and counted against its arithmetic."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_flags import config_path

from configs.vl_jepa import paper
from jepa import methods
from jepa.data.config import DataConfig
from jepa.errors import UserError
from jepa.interop import llama, registry, starting
from jepa.methods import vl_jepa_model, x_encoders
from jepa.parallel import mesh as meshes
from jepa.training import config as configs
from jepa.training import metrics, phases, prepare, video_features
from jepa.training.optimizer import split

DOCS = Path(__file__).parents[2] / "docs/vl_jepa.md"
# As published, where they differ from the defaults of their types.
LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
}
V_JEPA_2 = {"model_type": "vjepa2", "frames_per_clip": 64}


class Outline:
    """The methods and batches of the stages, without data."""

    def method(self, phase):
        return methods.from_config(phase.config)

    def batch_spec(self, phase, method):
        data = DataConfig.parse(phase.config.data)
        size = phase.config.train.global_batch

        def tokens(length):
            shape = (size * data.pairs_per_clip, length)
            return {
                "ids": jax.ShapeDtypeStruct(shape, jnp.int32),
                "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
            }

        shape = (size, data.frames, data.size, data.size, 3)
        return {
            "video": jax.ShapeDtypeStruct(shape, jnp.uint8),
            "query": tokens(data.query_length),
            "text": {
                **tokens(data.text_length),
                "hash": jax.ShapeDtypeStruct((size * data.pairs_per_clip,), jnp.int32),
            },
        }


@pytest.fixture(scope="module")
def stages():
    """All stages as they are before anything compiles: checked, with shapes of their states."""
    config = configs.resolve(paper.get_config())
    mesh = meshes.make_mesh(configs.mesh_sizes(config, 8))
    made = prepare.prepare(config, Outline(), mesh)
    return {each.phase.name: each for each in made}


def trained(stage):
    """Millions of trained parameters by the first two names of their paths."""
    params = stage.initializer.shapes.params
    kept, _ = split(params, stage.method.requirements.frozen)
    return {
        f"{part}/{name}": metrics.count(tree) / 1e6
        for part, inside in kept.items()
        if isinstance(inside, dict)
        for name, tree in inside.items()
    }


def total(counts, part):
    return sum(count for name, count in counts.items() if name.startswith(part))


def test_as_many_parameters_as_in_the_paper(stages):
    params = stages["stage_1"].initializer.shapes.params
    assert metrics.count(params["x_encoder"]) / 1e6 == pytest.approx(303.9, abs=0.5)  # "304M"
    counts = trained(stages["stage_1"])
    # "490M": eight layers 486.6, and the projections 1024 to 2048 and 2048 to 1536.
    assert total(counts, "predictor/") == pytest.approx(491.8, abs=0.05)
    assert counts["predictor/llama"] == pytest.approx(486.6, abs=0.05)
    assert counts["y_encoder/tower"] == pytest.approx(307.6, abs=0.05)
    assert counts["y_encoder/head"] == (768 * 1536 + 1536) / 1e6
    assert total(counts, "x_encoder/") == 0
    table = metrics.count(params["predictor"]["table"]) / 1e6
    assert table == pytest.approx(262.7, abs=0.05)
    # The parts that the paper names; its 1.6 B has a decoder of unknown size besides.
    assert metrics.count(params) / 1e9 == pytest.approx(1.37, abs=0.005)


def test_only_stage_3_trains_the_x_encoder(stages):
    found = {name: total(trained(stage), "x_encoder/") for name, stage in stages.items()}
    assert found.pop("stage_3") == pytest.approx(303.9, abs=0.5)
    assert set(found.values()) == {0}
    for name, stage in stages.items():
        cached = video_features.tower_of(stage.method) is not None
        assert cached == (name in ("stage_2", "sft"))
        DataConfig.parse(stage.phase.config.data).check_one_view("features are kept")


def test_what_is_kept_of_the_x_encoder_is_as_large_as_the_docs_say(stages):
    """Tokens times width times two bytes. How many clips there are, a config does not say."""
    said = " ".join(DOCS.read_text().split())
    for name, clips, words in (
        ("stage_1", None, "{samples:.2f} billion | {room:.0f} TB, were each image read twice"),
        ("stage_2", 147e6, "{samples:.3f} billion | {room:.0f} TB for the 147 million segments"),
        ("sft", 32.6e6, "{samples:.3f} billion | {room:.0f} TB for 32.6 million examples"),
    ):
        config, tower = stages[name].phase.config, stages[name].method.x_encoder
        samples = config.train.steps * config.train.global_batch
        assert config.model.x_encoder.cache_dtype == "float16"
        each = 2 * tower.width * int(np.prod(tower.grid(config.data.frames, 256, 256)))
        kept = f"{each // 2**10} KiB" if each < 2**20 else f"{each // 2**20} MiB"
        room = (clips or samples / 2) * each / 1e12
        assert f"| `{name}` | {kept} | {words.format(samples=samples / 1e9, room=room)}" in said
    millions = sum(weight for _, weight in stages["sft"].phase.config.data.mixture)
    assert millions == pytest.approx(32.6)


def test_every_choice_that_the_docs_name_is_a_key():
    config = paper.get_config()
    rows = DOCS.read_text().partition("| open | key |")[2].partition("\n\n")[0].splitlines()[2:]
    asked = []
    for row in rows:
        said, key = row.split("|")[2], ""
        for name in re.findall("`([^`]+)`", said):
            if name == "LAYERS":
                assert config.model.predictor.layers == paper.LAYERS
                continue
            key = key.rpartition(".")[0] + name if name.startswith(".") else name
            stages = range(4) if said.strip().endswith("of a stage") else [None]
            asked += [key if i is None else f"phases[{i}].{key}" for i in stages]
    assert len(asked) > len(rows) > 20
    for key in asked:
        # As a flag finds it: a KeyError names what is not there.
        value = config_path.get_value(key, config)
        if not isinstance(value, dict):
            config_path.set_value(key, config, value)
    warmups = [phase["optimizer"]["warmup_steps"] for phase in config.phases]
    assert "; ".join(f"{steps:,}" for steps in warmups) in DOCS.read_text()


def test_as_many_samples_as_in_the_paper(stages):
    samples = {
        name: stage.phase.config.train.steps * stage.phase.config.train.global_batch
        for name, stage in stages.items()
    }
    before = sum(count for name, count in samples.items() if name != "sft")
    assert before / 1e9 == pytest.approx(3.3, abs=0.05)
    assert sum(samples.values()) / 1e9 == pytest.approx(3.6, abs=0.05)


@pytest.mark.parametrize("devices", [64, 256])
def test_stages_fit_their_meshes_and_see_the_paper_s_tokens(stages, devices):
    tokens = {"stage_1": 256, "stage_2": 1024, "stage_3": 4096, "sft": 1024}
    for name, stage in stages.items():
        config = stage.phase.config
        configs.check_run(config, stage.method, devices)
        grid = stage.method.x_encoder.grid(config.data.frames, 256, 256)
        assert np.prod(grid) == tokens[name]
    three = stages["stage_3"].phase.config.train
    assert three.global_batch // three.accumulate == 3072


def test_rates(stages):
    first, last = stages["stage_1"].step.optimizer, stages["sft"].step.optimizer
    assert float(first.schedule(0)) < 1e-7
    for step in (2_000, 99_999):
        assert float(first.schedule(step)) == pytest.approx(5e-5)
    assert float(stages["stage_2"].step.optimizer.schedule(100_000)) == pytest.approx(5e-5)
    assert float(last.schedule(171_000)) == pytest.approx(5e-5)
    assert float(last.schedule(212_000)) == pytest.approx(2.5e-5, rel=0.01)
    assert float(last.schedule(252_999)) < 1e-8
    assert first.factor("y_encoder/tower/table/embedding") == 0.05
    assert first.factor("y_encoder/head/projection/kernel") == 1
    assert first.factor("predictor/out_projection/kernel") == 1


def test_a_stage_goes_on_where_the_one_before_ended():
    """The phases of a shorter run are the first of a longer one, which is what a workdir asks."""
    whole = configs.resolve(paper.get_config())
    plans = [phases.plan(configs.resolve(paper.get_config(name))) for name in paper.STAGES]
    assert [len(plan) for plan in plans] == [1, 2, 3, 4]
    for plan in plans:
        for mine, other in zip(plan, phases.plan(whole), strict=False):
            assert mine.config.to_json() == other.config.to_json()
    with pytest.raises(UserError, match="has no stage 'stage_4'"):
        paper.get_config("stage_4")


def test_a_flag_reaches_a_stage():
    config = paper.get_config("stage_3")
    config_path.set_value("phases[2].train.gradient_cache", config, True)
    config_path.set_value("phases[0].data.mixture", config, (("data/mine", 1.0),))
    first, second, third = phases.plan(configs.resolve(config))
    assert [x.config.train.gradient_cache for x in (first, second, third)] == [False, False, True]
    assert first.config.data.mixture == (("data/mine", 1.0),)
    assert second.config.data.caption_weights.to_dict() == {
        "detailed_action": 0.5,
        "detailed_caption": 0.5,
    }
    fresh = phases.plan(configs.resolve(paper.get_config("stage_3")))
    assert not fresh[2].config.train.gradient_cache


def test_the_config_describes_the_published_networks(stages, monkeypatch):
    method = stages["stage_1"].method
    theirs = registry.model("v_jepa_2").plan(V_JEPA_2).fields["encoder"]
    assert theirs["rope"] == "tiled"
    for name in {*theirs, *x_encoders.FUNCTION["video"]}:
        assert getattr(method.x_encoder, name) == theirs[name]
    fields = llama.span(LLAMA, paper.LAYERS).fields[llama.PART]
    start = starting.Start(paper.WEIGHTS["predictor"], fields, {"table": {}, "llama": {}})
    monkeypatch.setattr(starting, "find_llama", lambda *_: start)
    assert vl_jepa_model.predictor_weights(method.model.predictor, method.predictor)
