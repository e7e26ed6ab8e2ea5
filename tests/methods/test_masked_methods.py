"""The masked methods: what they compare, what gradients reach, and one arithmetic on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from masked_cases import CASES, QUICK, batch, draw, program, spec, tiny

from jepa import methods
from jepa.errors import UserError
from jepa.losses.dense import distance_to_masked
from jepa.masks import distance
from jepa.methods.base import Outputs
from jepa.methods.masked_batch import parts
from jepa.training import config as configs
from jepa.training.optimizer import flatten

CUT = {"mesh.fsdp": 2, "mesh.tensor": 2}
# Tokens are cut too, and not every number of them divides.
TOKENS = {**CUT, "mesh.context": 2}
# All run through the same core; the others on request, since a program takes seconds to compile.
MESHES = [
    ("i_jepa", 8, TOKENS),
    *(
        pytest.param(name, devices, axes, marks=pytest.mark.slow)
        for name in CASES
        for devices, axes in ((2, {}), (4, {}), (8, {}), (2, {"mesh.tensor": 2}), (8, CUT))
    ),
]
STEPPED = [
    *("i_jepa", "dense"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("v_jepa", "v_jepa_2", "v_jepa_2_1", "distillation")
    ),
]


@pytest.mark.parametrize(("name", "devices", "axes"), MESHES, ids=str)
def test_float64_loss_and_gradient_norm_agree_on_any_mesh(name, devices, axes):
    with jax.enable_x64(True):
        _, reference = program(name).run(5)
        _, history = program(name, devices, tuple(axes.items())).run(5)
    np.testing.assert_allclose(history, reference, rtol=1e-9)


@pytest.mark.parametrize("name", STEPPED)
def test_it_learns_a_batch_by_heart_and_the_average_follows(name):
    with jax.enable_x64(True):
        one = program(name)
        state, history = one.run(40, same=True)
    assert np.isfinite(history).all()
    assert history[-1, 0] < 0.75 * history[0, 0]
    first = flatten(one.first.params)
    moved = {path for path, x in flatten(state.params).items() if (x != first[path]).any()}
    if name == "distillation":
        assert state.target_params is None
        assert moved == {path for path in first if not path.startswith("teacher/")}
        held = "/".join(map(str, jax.tree_util.tree_leaves_with_path(state.opt_state)))
        assert "teacher" not in held
        return
    assert moved == set(first)
    for path, average in flatten(state.target_params).items():
        assert (average != first[path]).any() and (average != flatten(state.params)[path]).any()


class Method:
    """A tiny method, its parameters, and those of its target: another draw."""

    def __init__(self, name, **overrides):
        self.config = tiny(name, **overrides)
        self.method = methods.from_config(self.config)
        self.batch = batch(self.config)
        self.params = draw(self.method, self.batch, seed=0)
        self.target = draw(self.method, self.batch, seed=1)
        self._represent = jax.jit(
            lambda params, target, data: self.method.represent(
                params, target, {}, data, jax.random.key(2)
            )[0],
            compiler_options=QUICK,
        )

    def represent(self, params=None, data=None):
        params = self.params if params is None else params
        return self._represent(params, self.target, self.batch if data is None else data)


def changed(first, second):
    return {
        name for name, x in first.tokens.items() if np.abs(x - second.tokens[name]).max() > 1e-5
    }


@pytest.fixture(scope="module")
def made():
    return {name: Method(name) for name in ("i_jepa", "v_jepa_2_1")}


def test_targets_matter_and_get_no_gradient(made):
    case = made["i_jepa"]

    def loss(params, target):
        outputs, _ = case.method.represent(params, target, {}, case.batch, jax.random.key(2))
        return case.method.objective(outputs, jnp.int32(0))[0]

    differentiated = jax.jit(jax.value_and_grad(loss, (0, 1)), compiler_options=QUICK)
    value, (of_params, of_target) = differentiated(case.params, case.target)
    assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(of_target))
    assert all(np.abs(leaf).any() for leaf in jax.tree.leaves(of_params))
    other, _ = differentiated(case.params, case.params)
    assert abs(other - value) > 1e-3


def test_each_block_of_targets_is_predicted_by_itself(made):
    case = made["i_jepa"]
    masks = case.batch["masks"]
    size = masks["targets"].shape[2]
    assert masks["targets"].shape[1] == 4
    other = masks["targets"].copy()
    other[:, 1] = (other[:, 1] + 1) % 16
    before = case.represent().tokens["prediction/blocks"]
    moved = {**case.batch, "masks": {**masks, "targets": other}}
    after = case.represent(data=moved).tokens["prediction/blocks"]
    differs = np.abs(before - after).reshape(len(before), 4, size, -1).max((0, 2, 3)) > 1e-5
    assert differs.tolist() == [False, True, False, False]


def test_only_the_context_is_seen_and_everything_is_a_target(made):
    case = made["i_jepa"]
    video, masks = case.batch["video"], case.batch["masks"]
    hidden = next(i for i in range(16) if i not in masks["context"][0])
    row, column = divmod(hidden, 4)
    other = video.copy()
    other[0, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] ^= 128
    assert changed(case.represent(), case.represent(data={**case.batch, "video": other})) == {
        "target/blocks",
        "copy/blocks",
    }


def test_the_teacher_makes_the_targets_and_nothing_else():
    case = Method("distillation")
    assert case.method.requirements.frozen == ("teacher/.*",) and not case.method.requirements.ema
    teacher = case.params["teacher"]
    bias = teacher["patches"]["bias"].copy()
    bias[::2] += 0.5
    params = {
        **case.params,
        "teacher": {**teacher, "patches": {**teacher["patches"], "bias": bias}},
    }
    before = case.represent()
    assert before.tokens["prediction/short"].shape[-1] == 32
    touched = {name.partition("/")[0] for name in changed(before, case.represent(params))}
    assert touched == {"target", "copy", "context_target"}


def test_each_kind_of_mask_has_its_token(made):
    case = made["v_jepa_2_1"]
    before = case.represent()
    for row, kind in enumerate(("short", "images/image")):
        tokens = case.params["predictor"]["mask_tokens"].copy()
        tokens[row, ::2] += 1.0
        params = {**case.params, "predictor": {**case.params["predictor"], "mask_tokens": tokens}}
        touched = {name.partition("/")[2] for name in changed(before, case.represent(params))}
        assert touched == {kind}


def test_kinds_are_numbered_by_name():
    ((_, masks),) = parts(batch(tiny("v_jepa_2")))
    assert [(mask.name, mask.number) for mask in masks] == [("long", 0), ("short", 1)]


def test_the_two_forms_of_rotary_positions_differ():
    forms = {"model.encoder.rope": "tiled", "model.predictor.rope": "tiled"}
    configured = (tiny("v_jepa_2"), tiny("v_jepa_2", **forms))
    turned, tiled = (methods.from_config(config) for config in configured)
    params = draw(turned, batch(configured[0]))
    video = np.random.default_rng(0).normal(size=(1, 4, 16, 16, 3)).astype(np.float32)
    first, second = (
        jax.jit(made.tokens, compiler_options=QUICK)(params, video) for made in (turned, tiled)
    )
    assert np.abs(first - second).max() > 1e-3
    assert turned.predictor.rope == "rotation" and tiled.predictor.rope == "tiled"
    with pytest.raises(UserError, match="set both to 'rotation'"):
        config = tiny("v_jepa_2", **{"model.encoder.rope": "tiled"})
        methods.from_config(config).check(config)


def test_each_level_of_the_targets_is_normalised_by_itself(made):
    case = made["v_jepa_2_1"]
    outputs = case.represent()
    target = np.asarray(outputs.tokens["target/short"])
    levels = target.reshape(*target.shape[:2], 2, 24)
    np.testing.assert_allclose(levels.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(levels.std(-1), 1, atol=1e-2)
    assert np.abs(levels[:, :, 0] - levels[:, :, 1]).max() > 0.1
    # The last level is what evaluation sees.
    video = {"video": case.batch["video"]}
    embedded = np.asarray(case.method.embed(case.target, {}, video).tokens["video"])
    last = (embedded - embedded.mean(-1, keepdims=True)) / embedded.std(-1, keepdims=True)
    ids = case.batch["masks"]["short"]["target"][..., None]
    np.testing.assert_allclose(levels[:, :, 1], np.take_along_axis(last, ids, 1), atol=1e-3)


def test_images_and_clips_have_an_embedding_of_their_own(made):
    case = made["v_jepa_2_1"]
    encoder = case.params["encoder"]
    for part, row, kinds in (("image_patches", 1, {"image"}), ("patches", 0, {"short"})):
        bias, vector = encoder[part]["bias"].copy(), encoder["modality"].copy()
        bias[::2] += 0.5
        vector[row, ::2] += 0.5
        for own in ({part: {**encoder[part], "bias": bias}}, {"modality": vector}):
            params = {**case.params, "encoder": {**encoder, **own}}
            touched = changed(case.represent(), case.represent(params))
            assert {name.rpartition("/")[2] for name in touched} == kinds


def random_outputs(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_i_jepas_loss_is_torchs_smooth_l1():
    tokens = random_outputs(
        {"prediction/blocks": (3, 8, 5), "target/blocks": (3, 8, 5), "copy/blocks": (3, 1, 5)}
    )
    method = methods.from_config(tiny("i_jepa"))
    loss, metrics = method.objective(Outputs(tokens=tokens), jnp.int32(0))
    smooth = torch.nn.functional.smooth_l1_loss
    pair = [torch.tensor(tokens[f"{part}/blocks"]) for part in ("prediction", "target", "copy")]
    np.testing.assert_allclose(loss, smooth(pair[0], pair[1]), rtol=1e-5)
    ratio = smooth(pair[0], pair[1]) / smooth(pair[2].expand(3, 8, 5), pair[1])
    np.testing.assert_allclose(metrics["prediction_over_copy"], ratio, rtol=1e-5)
    spread = tokens["target/blocks"].std(axis=(0, 1)).mean()
    np.testing.assert_allclose(metrics["target_std"], spread, rtol=1e-5)


def test_v_jepas_loss_is_the_mean_of_the_kinds_l1():
    tokens = random_outputs(
        {
            f"{part}/{kind}": (3, 1 if part == "copy" else count, 5)
            for part in ("prediction", "target", "copy")
            for kind, count in (("long", 9), ("short", 4))
        }
    )
    loss, _ = methods.from_config(tiny("v_jepa")).objective(Outputs(tokens=tokens), jnp.int32(0))
    wanted = np.mean(
        [
            np.abs(tokens[f"prediction/{k}"] - tokens[f"target/{k}"]).mean()
            for k in ("long", "short")
        ]
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


@pytest.mark.parametrize(("step", "scale"), [(0, 0.0), (15, 0.5), (30, 1.0)])
def test_the_dense_loss_weighs_by_distance_and_rises(made, step, scale):
    case = made["v_jepa_2_1"]
    outputs = jax.device_get(case.represent())
    method = methods.from_config(tiny("v_jepa_2_1", **{"loss.ramp": (10, 20)}))
    loss, _ = method.objective(outputs, jnp.int32(step))
    totals = {}
    for kind, weight in (("short", 0.5), ("image", 0.7)):
        name = f"images/{kind}" if kind == "image" else kind
        data, grid = (
            (case.batch["images"], (1, 4, 4)) if kind == "image" else (case.batch, (2, 4, 4))
        )
        masks = data["masks"][kind]
        far = distance.distance_to_masked(masks["context"], masks["target"], grid)
        get = {part: outputs.tokens[f"{part}/{name}"] for part in ("prediction", "target")}
        seen = np.abs(outputs.tokens[f"context/{name}"] - outputs.tokens[f"context_target/{name}"])
        dense = weight * np.mean(seen / np.sqrt(far)[..., None])
        totals[kind] = np.abs(get["prediction"] - get["target"]).mean() + scale * dense
    wanted = 0.5 * totals["short"] + 0.5 * totals["image"]
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_distances_on_the_device_are_those_of_the_host():
    grid = (3, 4, 5)
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(60) for _ in range(6)]).astype(np.int32)
    context, target = order[:, 4:40], order[:, :4]
    wanted = distance.distance_to_masked(context, target, grid)
    np.testing.assert_allclose(distance_to_masked(context, target, grid), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("i_jepa", {"data.streams": ("video",)}, "streams has no 'masks'"),
        ("i_jepa", {"data.patch": 8}, "data.patch is 8 and .*encoder.patch is 4"),
        ("v_jepa", {"loss.kind": "l3"}, "loss.kind is 'l3'"),
        ("v_jepa", {"mesh.tensor": 4}, "encoder.heads is 2"),
        ("v_jepa_2_1", {"model.encoder.taps": (1, 3)}, "taps is .*rise to the depth, 2"),
        ("v_jepa_2_1", {"loss.ramp": (20, 10)}, "loss.ramp is"),
        ("v_jepa_2_1", {"data.images.batch": 6}, "images.batch is 6; make it a multiple of 8"),
        ("v_jepa_2_1", {"data.images.masks.sampler": "multiblock"}, "use 'tubes'"),
        ("distillation", {"model.teacher.weights": ""}, "teacher.weights is empty"),
        ("distillation", {"model.teacher.patch": 8}, "teacher.patch is 8"),
    ],
)
def test_a_config_that_cannot_work_is_refused_in_one_sentence(name, overrides, words):
    config = tiny(name, **overrides)
    with pytest.raises(UserError, match=words):
        configs.check_run(config, methods.from_config(config), 8)


def test_too_few_mask_tokens_are_refused_and_one_serves_all():
    kinds = {kind: {"blocks": 2, "scale": 0.2} for kind in ("a", "b")}
    masks = {"data.masks.kinds": kinds, "model.predictor.mask_tokens": 2}
    config = tiny("v_jepa_2_1", **masks)
    with pytest.raises(UserError, match=r"mask_tokens is 2.*\(a, b, images/image\)"):
        jax.eval_shape(methods.from_config(config).init, jax.random.key(0), batch(config))
    config = tiny("v_jepa_2_1", **{**masks, "model.predictor.mask_tokens": 1})
    jax.eval_shape(methods.from_config(config).init, jax.random.key(0), batch(config))


def test_work_is_counted_where_it_is_done():
    config = tiny("v_jepa_2_1")
    method, data = methods.from_config(config), spec(config)
    clips = {key: value for key, value in data.items() if key != "images"}
    assert 0 < method.flops(clips) < method.flops(data)
