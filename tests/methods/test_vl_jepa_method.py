"""VL-JEPA's objective and its train step: one arithmetic on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jepa import methods
from jepa.data.prefetch import put
from jepa.errors import UserError
from jepa.methods.vl_jepa import VLJEPA, default_loss, default_model
from jepa.parallel import mesh as meshes
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.optimizer import flatten
from jepa.training.state import Initializer
from jepa.training.step import lower

CLIPS, PAIRS, VOCAB = 8, 2, 19


def tiny(**overrides):
    config = ConfigDict({"seed": 3, "method": "jepa.methods.vl_jepa.VLJEPA", "dtype": "float32"})
    config.data = {"path": "unused"}
    config.mesh = configs.default_mesh_config()
    config.model = default_model()
    config.model.shared_dim = 8
    config.model.x_encoder.update(patch=8, width=16, depth=2, heads=2)
    config.model.predictor.update(
        width=16, depth=1, heads=2, kv_heads=2, mlp_width=24, vocab=VOCAB + 1
    )
    config.model.y_encoder.update(
        tower="transformer", frozen=False, vocab=VOCAB + 1, width=16, depth=1, heads=2
    )
    config.loss = default_loss()
    config.loss.update(sigreg_prediction=0.1, sigreg_target=0.1, regression=0.5)
    config.loss.sigreg.slices = 16
    config.optimizer = {"name": "adamw", "learning_rate": 1e-2, "warmup_steps": 2}
    config.train = {"steps": 20, "global_batch": CLIPS}
    config.update_from_flattened_dict(overrides)
    return configs.resolve(config)


def batch(step=0):
    rng = np.random.default_rng(step)

    def text(length):
        ids = rng.integers(1, VOCAB, (CLIPS * PAIRS, length)).astype(np.int32)
        mask = np.arange(length) < rng.integers(1, length + 1, (CLIPS * PAIRS, 1))
        return {"ids": np.where(mask, ids, 0).astype(np.int32), "mask": mask}

    answer = text(5)
    answer["hash"] = rng.integers(0, 12, CLIPS * PAIRS).astype(np.int32)
    video = rng.integers(0, 256, (CLIPS, 4, 16, 16, 3)).astype(np.uint8)
    return {"video": video, "query": text(4), "text": answer}


SPEC = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch())


# Compiling is nearly all the time these tests take, and speed is not what they are about.
QUICK = {"xla_backend_optimization_level": 0}
FIRST = {}


def first_state(config, start):
    """The state of step 0, drawn once for all meshes."""
    key = (config.dtype, config.optimizer.name, config.model.x_encoder.frozen)
    if key not in FIRST:
        FIRST[key] = jax.device_get(start.create())
    return jax.device_put(FIRST[key], start.shardings)


def run(devices=1, steps=20, **overrides):
    config = tiny(**overrides)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
    method = methods.from_config(config)
    configs.check_run(config, method, devices)
    step = loop.make_step(config, method)
    start = Initializer(method, step.optimizer, mesh, SPEC, seed=config.seed, dtype=config.dtype)
    program = lower(step, mesh, start.shapes, SPEC).compile(compiler_options=QUICK)
    state, history = first_state(config, start), []
    for i in range(steps):
        state, metrics = program(state, put(batch(i), meshes.batch_sharding(mesh)))
        history.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return jax.device_get(state), np.array(history)


@pytest.fixture(scope="module")
def reference():
    with jax.enable_x64(True):
        return run(dtype="float64")[1]


@pytest.mark.parametrize(
    ("devices", "axes"),
    [
        (2, {}),
        (4, {"mesh.context": 2}),
        # What these cut is cut in the last one too.
        pytest.param(8, {}, marks=pytest.mark.slow),
        pytest.param(2, {"mesh.fsdp": 2}, marks=pytest.mark.slow),
        pytest.param(2, {"mesh.tensor": 2}, marks=pytest.mark.slow),
        (8, {"mesh.fsdp": 2, "mesh.tensor": 2}),
    ],
    ids=str,
)
def test_float64_loss_and_gradient_norm_agree_on_any_mesh(reference, devices, axes):
    with jax.enable_x64(True):
        _, history = run(devices, dtype="float64", **axes)
    np.testing.assert_allclose(history, reference, rtol=1e-9)


@pytest.mark.slow
def test_float32_agrees_at_the_first_step():
    _, one = run(1, steps=1)
    for devices, axes in ((8, {}), (4, {"mesh.fsdp": 2, "mesh.tensor": 2})):
        _, many = run(devices, steps=1, **axes)
        np.testing.assert_allclose(many, one, rtol=1e-5)


@pytest.mark.slow
def test_muon_takes_the_same_steps_on_a_mesh_that_cuts_its_matrices():
    with jax.enable_x64(True):
        muon = {"dtype": "float64", "optimizer.name": "muon", "steps": 3}
        _, one = run(1, **muon)
        _, many = run(4, **muon, **{"mesh.fsdp": 2, "mesh.tensor": 2})
    np.testing.assert_allclose(many, one, rtol=1e-9)


@pytest.mark.slow
def test_two_runs_are_bit_identical():
    (first, _), (second, _) = run(2, steps=3), run(2, steps=3)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
def test_rows_of_a_clip_share_its_tokens():
    method = VLJEPA(tiny())
    data = batch()
    params, _ = method.init(jax.random.key(0), data)
    together = method.embed(params, {}, data).pooled["prediction"]
    first = {k: {n: v[::PAIRS] for n, v in data[k].items()} for k in ("query",)}
    alone = method.embed(params, {}, {"video": data["video"], **first}).pooled["prediction"]
    np.testing.assert_allclose(together[::PAIRS], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(together, axis=1), 1.0, rtol=1e-5)


def test_cached_features_stand_in_for_the_tower():
    method = VLJEPA(tiny())
    data = batch()
    params, _ = method.init(jax.random.key(0), data)
    features = method.text_features(params, data["text"])
    cached = {**data, "text": {"features": features, "hash": data["text"]["hash"]}}
    want, _ = method.represent(params, None, {}, data, jax.random.key(1))
    got, _ = method.represent(params, None, {}, cached, jax.random.key(1))
    np.testing.assert_allclose(got.pooled["target"], want.pooled["target"], rtol=1e-5, atol=1e-6)
    assert method.flops(cached) < method.flops(data)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    data = batch()
    terms = ("info_nce", "regression", "sigreg_prediction", "sigreg_target")
    values = {}
    for chosen in (*((term,) for term in terms), terms):
        weights = {f"loss.{term}": 2.0 if term in chosen else 0.0 for term in terms}
        method = VLJEPA(tiny(**weights))
        params, _ = method.init(jax.random.key(0), data)
        outputs, _ = method.represent(params, None, {}, data, jax.random.key(1))
        values[chosen] = float(method.objective(outputs, jnp.int32(5))[0])
    np.testing.assert_allclose(values[terms], sum(values[term,] for term in terms), rtol=1e-5)


def test_frozen_parts_do_not_move_and_groups_scale_the_rate():
    after, _ = run(steps=1, **{"model.x_encoder.frozen": True})
    old = flatten(FIRST["float32", "adamw", True].params)
    moved = {path: np.abs(leaf - old[path]).max() for path, leaf in flatten(after.params).items()}
    assert not any(moved[path] for path in moved if path.startswith("x_encoder/"))
    # Adam's first step is the rate itself, so the tower's moves at a twentieth of the head's.
    ratio = moved["y_encoder/tower/table/embedding"] / moved["y_encoder/head/projection/kernel"]
    assert 0.04 < ratio < 0.06


def test_without_a_head_the_tower_s_features_are_the_target():
    method = VLJEPA(tiny(**{"model.y_encoder.head": False, "model.shared_dim": 16}))
    data = batch()
    params, _ = method.init(jax.random.key(0), data)
    assert params["y_encoder"].keys() == {"tower"}
    np.testing.assert_array_equal(
        method.target(params, data["text"]), method.text_features(params, data["text"])
    )
    assert [pattern for pattern, _ in method.requirements.learning_rate_groups] == [
        "x_encoder/.*",
        "y_encoder/tower/.*",
    ]
    partition.specs(method.partition_table, params)
    with_head = VLJEPA(tiny(**{"model.shared_dim": 16}))
    assert method.flops(data) < with_head.flops(data)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.y_encoder.tower": "bert"}, "tower is 'bert'"),
        ({"mesh.tensor": 4}, "x_encoder.heads is 2"),
        ({"model.y_encoder.frozen": True}, "y_encoder.frozen is True"),
        ({"model.y_encoder.head": False}, "shared_dim is 8, and .*head is False.*with 16 numbers"),
        ({f"loss.{t}": 0.0 for t in ("info_nce", "regression")}, "no term"),
    ],
)
def test_a_config_that_cannot_work_is_refused_in_one_sentence(overrides, words):
    if words == "no term":
        overrides = {**overrides, "loss.sigreg_prediction": 0.0, "loss.sigreg_target": 0.0}
    with pytest.raises(UserError, match=words):
        config = tiny(**overrides)
        configs.check_run(config, methods.from_config(config), 8)


def test_an_unknown_key_of_the_model_is_named():
    config = tiny()
    config.unlock()
    config.model.x_encoder.widht = 3
    with pytest.raises(UserError, match="widht.*did you mean 'width'"):
        VLJEPA(config)


def test_a_method_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="jepa.methods.nothing"):
        methods.from_config(ConfigDict({"method": "jepa.methods.nothing.Nothing"}))


def test_a_tokenizer_with_more_ids_than_the_table_is_refused():
    method = VLJEPA(tiny())
    method.check_vocabulary({"query": VOCAB + 1, "text": None})
    with pytest.raises(UserError, match="predictor.vocab is 20.*at least 21"):
        method.check_vocabulary({"query": VOCAB + 2, "text": None})
    with pytest.raises(UserError, match="y_encoder.vocab"):
        method.check_vocabulary({"query": 5, "text": 30522})
