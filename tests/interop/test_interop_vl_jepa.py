"""VL-JEPA from published weights: what goes where, what is refused, how much the paper trains."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_models
from ml_collections import ConfigDict

from configs.vl_jepa import quickstart
from experiments import convert, train
from jepa.data.tokenize import Tokenizer
from jepa.data.world.write import write_world
from jepa.errors import UserError
from jepa.interop import converted, starting
from jepa.interop.registry import model as known
from jepa.interop.tensors import open_tensors
from jepa.methods import text_towers
from jepa.methods.vl_jepa import VLJEPA, default_loss, default_model
from jepa.models.gemma import EmbeddingGemma
from jepa.models.llama import LLAMAS, VOCAB
from jepa.parallel import mesh as meshes
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training import metrics
from jepa.training.optimizer import flatten, split
from jepa.training.state import overlay

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Directories of a tiny Llama and EmbeddingGemma, as published and converted."""
    directory = tmp_path_factory.mktemp("weights")
    text_models.llama().save_pretrained(directory / "llama")
    text_models.save_gemma(directory / "gemma", text_models.gemma(), text_models.maps())
    convert.convert("llama", directory / "llama", directory / "llama_converted")
    convert.convert("embedding_gemma", directory / "gemma", directory / "gemma_converted")
    return directory


@pytest.fixture
def tiny_gemma(monkeypatch, weights):
    """Makes the tower "embedding_gemma" mean the tiny one."""
    fields = converted.about(weights / "gemma_converted")["fields"]["tower"]
    published = text_towers.Published(EmbeddingGemma, "embedding_gemma", fields)
    monkeypatch.setattr(text_towers, "TOWERS", {**text_towers.TOWERS, "embedding_gemma": published})


def config_of(**overrides):
    config = ConfigDict({"seed": 3, "method": "jepa.methods.vl_jepa.VLJEPA", "dtype": "float32"})
    config.data = {"path": "unused", "tokenizer": "gemma"}
    config.mesh = configs.default_mesh_config()
    config.model = default_model()
    config.model.shared_dim = 8
    config.model.x_encoder.update(patch=8, width=16, depth=1, heads=2)
    config.model.predictor.update(
        width=32, depth=2, heads=8, kv_heads=2, mlp_width=48, vocab=text_models.VOCAB, theta=1000.0
    )
    config.model.predictor.scaling.update(factor=8.0, original_length=60)
    config.model.y_encoder.tower = "embedding_gemma"
    config.loss = default_loss()
    config.optimizer = {"name": "adamw"}
    config.train = {"steps": 2, "global_batch": 8}
    config.update_from_flattened_dict(overrides)
    return configs.resolve(config)


def method_of(weights, predictor="llama", tower="gemma", **overrides):
    given = {
        "model.predictor.weights": str(weights / predictor),
        "model.predictor.layers": LAYERS,
        "model.y_encoder.weights": str(weights / tower),
    }
    return VLJEPA(config_of(**{**given, **overrides}))


def batch_spec():
    def text(length):
        return {
            "ids": jax.ShapeDtypeStruct((8, length), jnp.int32),
            "mask": jax.ShapeDtypeStruct((8, length), jnp.bool_),
        }

    answer = {**text(5), "hash": jax.ShapeDtypeStruct((8,), jnp.int32)}
    video = jax.ShapeDtypeStruct((8, 2, 16, 16, 3), jnp.uint8)
    return {"video": video, "query": text(4), "text": answer}


def shapes_of(method):
    return jax.eval_shape(method.init, jax.random.key(0), batch_spec())[0]


@pytest.mark.parametrize("form", ["", "_converted"])
def test_weights_go_straight_to_their_places_on_a_mesh(weights, tiny_gemma, form):
    method = method_of(weights, f"llama{form}", f"gemma{form}")
    shapes = shapes_of(method)
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2, "context": 1})
    places = partition.shardings(mesh, method.partition_table, shapes)
    zeros = jax.tree.map(lambda s, p: jnp.zeros(s.shape, s.dtype, device=p), shapes, places)
    params = flatten(overlay(zeros, method.pretrained()))
    for path, leaf in flatten(places).items():
        assert params[path].sharding == leaf
    whole = converted.load(weights / "llama_converted")["decoder"]
    expected = {
        "predictor/table": whole["table"],
        "predictor/llama/norm": whole["llama"]["norm"],
        "predictor/llama/blocks": jax.tree.map(lambda p: p[1:3], whole["llama"]["blocks"]),
        "y_encoder/tower": converted.load(weights / "gemma_converted")["tower"],
    }
    loaded = set()
    for prefix, tree in expected.items():
        for path, array in flatten(tree).items():
            loaded.add(f"{prefix}/{path}")
            np.testing.assert_array_equal(params[f"{prefix}/{path}"], array)
    # Nothing else comes from there: projections and heads are drawn.
    drawn = params.keys() - loaded
    assert not any(np.asarray(params[path]).any() for path in drawn)
    assert {"/".join(path.split("/")[:2]) for path in drawn if "x_encoder/" not in path} == {
        "log_inverse_temperature",
        "predictor/out_projection",
        "predictor/visual_projection",
        "y_encoder/head",
    }


def test_the_predictor_may_take_all_layers(weights, tiny_gemma):
    overrides = {"model.predictor.layers": (), "model.predictor.depth": 4}
    found = method_of(weights, **overrides).pretrained()["predictor/llama"]
    assert found["blocks"]["norm1"]["scale"].shape == (4, 32)


def test_the_frozen_tower_is_embedded_once(weights, tiny_gemma):
    method = method_of(weights)
    params, encode = method.cached_text_tower()
    ids, mask = text_models.batch()
    got = jax.jit(encode)(params, ids, mask)
    np.testing.assert_allclose(jnp.linalg.norm(got, axis=1), 1, rtol=1e-5)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))


def test_the_maps_may_be_left_out(weights, tiny_gemma):
    method = method_of(weights, **{"model.y_encoder.dense_layers": False})
    found = method.pretrained()["y_encoder/tower"]
    assert "widen" not in found
    assert flatten(found).keys() == flatten(shapes_of(method)["y_encoder"]["tower"]).keys()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.predictor.mlp_width": 64}, "weights are of config.model.predictor.mlp_width=48"),
        ({"model.predictor.theta": 10.0}, "config.model.predictor.theta=1000.0"),
        ({"model.predictor.scaling.factor": 1.0}, "config.model.predictor.scaling="),
        ({"model.predictor.depth": 3}, "config.model.predictor.depth=2"),
        ({"model.predictor.layers": (1, 9)}, r"predictor.weights is .*layers \(1, 9\).*has 4"),
        ({"model.predictor.weights": "nowhere"}, "'nowhere', which does not exist"),
        (
            {"model.y_encoder.tower": "qwen3_embedding_0.6b"},
            "y_encoder.weights is .*model_type 'gemma3_text'",
        ),
    ],
)
def test_weights_of_other_networks_are_refused(weights, tiny_gemma, overrides, words):
    with pytest.raises(UserError, match=words):
        method_of(weights, **overrides).pretrained()


def test_the_published_sizes_are_asked_of_the_weights(weights):
    with pytest.raises(UserError, match=r"y_encoder.weights.*vocab=40, and the config says 262144"):
        method_of(weights).pretrained()


@pytest.mark.parametrize("length", [32768, 40960])
@pytest.mark.parametrize(
    ("tower", "sizes"),
    [("qwen3_embedding_4b", (2560, 9728)), ("qwen3_embedding_8b", (4096, 12288))],
)
def test_qwen_s_weights_may_say_any_length_of_texts(monkeypatch, tower, sizes, length):
    """Rotary positions have no table, and published files of one model say different lengths."""
    content = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151665,
        "hidden_size": sizes[0],
        "intermediate_size": sizes[1],
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": length,
        "rope_theta": 1000000,
    }
    fields = known("qwen3_embedding").plan(content).fields["tower"]
    start = starting.Start("qwen", fields, {"table": {}, "llama": {}})
    monkeypatch.setattr(starting, "find", lambda *_: start)
    config = ConfigDict({"tower": tower, "weights": "qwen", "dense_layers": True, "remat": "none"})
    made = text_towers.make(config, {})
    assert text_towers.weights(config, made) == start.params
    start.fields["theta"] = 10.0
    with pytest.raises(UserError, match="weights are of theta=10.0"):
        text_towers.weights(config, made)


def test_a_table_of_positions_has_the_length_of_the_weights(monkeypatch):
    fields = {"max_length": 16}
    start = starting.Start("clip", fields, {"positions": {}, "blocks": {}})
    monkeypatch.setattr(starting, "find", lambda *_: start)
    config = ConfigDict({"tower": "pe_core_b16_224", "weights": "clip", "dense_layers": True})
    made = text_towers.make(ConfigDict({**config, "remat": "none"}), {})
    with pytest.raises(UserError, match="weights are of max_length=16, and the config says 32"):
        text_towers.weights(config, made)


def test_converted_directories_of_other_models_are_named(weights, tiny_gemma):
    with pytest.raises(UserError, match="holds llama, not embedding_gemma"):
        method_of(weights, tower="llama_converted").pretrained()
    with pytest.raises(UserError, match="holds embedding_gemma, not llama"):
        method_of(weights, predictor="gemma_converted").pretrained()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.y_encoder.weights": ""}, "frozen is True.*set config.model.y_encoder.weights"),
        ({"data.tokenizer": "minilm"}, "reads tokens of its own"),
        ({"model.y_encoder.tower": "transformer"}, "trained from scratch"),
        (
            {"model.y_encoder.tower": "minilm", "model.y_encoder.dense_layers": False},
            "none to leave out",
        ),
    ],
)
def test_configs_that_cannot_be_meant_are_refused(weights, tiny_gemma, overrides, words):
    with pytest.raises(UserError, match=words):
        given = {"model.y_encoder.weights": str(weights / "gemma"), **overrides}
        config = config_of(**given)
        VLJEPA(config).check(config)


def test_a_foreign_tokenizer_is_noticed_by_its_size():
    method = VLJEPA(config_of())
    method.check_vocabulary({"text": 262145})  # one id more, of images, which stands in no text
    for size in (30522, 300000):
        with pytest.raises(UserError, match=f"{size} ids, and the table of 'embedding_gemma'"):
            method.check_vocabulary({"text": size})


def test_queries_get_the_tokens_of_the_predictor_s_weights(weights, tiny_gemma):
    method = method_of(weights, **{"model.predictor.vocab": 500})
    method.check_vocabulary({"query": 500})
    with pytest.raises(UserError, match="query_tokenizer has 40 ids.*weights 500"):
        method.check_vocabulary({"query": 40})


def test_the_paper_s_arithmetic():
    """ViT-L, eight layers of Llama-3.2-1B, EmbeddingGemma: 491.8 and 307.6 million."""
    config = config_of()
    config.model.shared_dim = 1536
    config.model.x_encoder.update(patch=16, tubelet=2, width=1024, depth=24, heads=16, frozen=True)
    sizes = {**LLAMAS["llama-3.2-1b"], "depth": 8, "vocab": VOCAB}
    del sizes["head_dim"], sizes["scaling"]
    config.model.predictor.update(**sizes, frozen_table=True)
    config.model.predictor.scaling.factor = 32.0
    config.model.y_encoder.frozen = False
    method = VLJEPA(config)
    shapes = shapes_of(method)
    trained, _ = split(shapes, method.requirements.frozen)
    predictor, towers = metrics.count(trained["predictor"]), trained["y_encoder"]
    assert predictor / 1e6 == pytest.approx(491.8, abs=0.05)
    assert metrics.count(towers["tower"]) / 1e6 == pytest.approx(307.6, abs=0.05)
    assert "x_encoder" not in trained
    assert metrics.count(shapes["x_encoder"]) / 1e6 == pytest.approx(303.9, abs=0.5)
    head = metrics.count(towers["head"])
    total = predictor + metrics.count(towers) + VOCAB * 2048 + metrics.count(shapes["x_encoder"])
    assert head == 768 * 1536 + 1536
    temperature = metrics.count(trained) - predictor - metrics.count(towers)
    said = metrics.trainable(shapes, method.requirements.frozen)
    assert said == (
        f"trainable {predictor + metrics.count(towers) + temperature:,} of "
        f"{total + temperature:,} parameters"
    )


def test_what_is_pending_is_read_on_request(weights):
    start = starting.find(weights / "gemma", "embedding_gemma", "tower", "key")
    read = starting.read(start.params)
    expected = converted.load(weights / "gemma_converted")["tower"]
    jax.tree.map(np.testing.assert_array_equal, read, expected)


@pytest.mark.slow
def test_a_run_starts_from_published_weights_and_goes_on_without_them(tmp_path, monkeypatch, capfd):
    """Llama's layers, EmbeddingGemma's tower with its tokenizer and prompt; features cached."""
    data = tmp_path / "world"
    write_world(data, clips={"train": 8}, processes=1, progress=False)
    size = Tokenizer(data / "tokenizer.json", 4).vocabulary_size
    monkeypatch.setattr(text_models, "VOCAB", size)
    text_models.llama().save_pretrained(tmp_path / "weights/llama")
    gemma = tmp_path / "weights/gemma"
    text_models.save_gemma(gemma, text_models.gemma(), text_models.maps())
    shutil.copyfile(data / "tokenizer.json", gemma / "tokenizer.json")
    fields = known("embedding_gemma").plan_of(known("embedding_gemma").open(gemma)).fields["tower"]
    published = text_towers.Published(EmbeddingGemma, "embedding_gemma", fields)
    monkeypatch.setattr(text_towers, "TOWERS", {"embedding_gemma": published})

    config = quickstart.get_config()
    config.data.update(
        path=str(data),
        frames=4,
        size=32,
        cache="none",
        pairs_per_clip=1,
        tokenizer=str(gemma),
        text_prompt="document",
        threads=1,
    )
    config.model.shared_dim = 16
    config.model.x_encoder.update(width=24, depth=1, heads=2)
    config.model.predictor.update(
        width=32, depth=2, heads=8, kv_heads=2, mlp_width=48, vocab=size, theta=1000.0,
        weights=str(tmp_path / "weights/llama"), layers=LAYERS, frozen_table=True,
    )  # fmt: skip
    config.model.predictor.scaling.update(factor=8.0, original_length=60)
    config.model.y_encoder.update(tower="embedding_gemma", weights=str(gemma))
    config.train.update(steps=4, global_batch=8, log_every=1, save_every=2)
    config.evaluation = ConfigDict()
    result = train.main(config, tmp_path / "run")
    assert result.finished
    params = result.state.params
    table = converted_table(tmp_path / "weights/llama")
    np.testing.assert_array_equal(params["predictor"]["table"]["embedding"], table)
    frozen = metrics.count(params["predictor"]["table"])
    frozen += metrics.count(params["y_encoder"]["tower"])
    total = metrics.count(params)
    said = "".join(capfd.readouterr())
    assert f"trainable {total - frozen:,} of {total:,} parameters" in said
    # What has been trained is in the checkpoint; the weights may be gone.
    shutil.rmtree(tmp_path / "weights/llama")
    config.train.steps = 5
    assert train.main(config, tmp_path / "run").step == 5


def converted_table(directory):
    return open_tensors(directory).read("model.embed_tokens.weight")
