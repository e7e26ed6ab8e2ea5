"""LeJEPA: its loss against NumPy, its batch norm, and its train step on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jepa import methods
from jepa.data.prefetch import put
from jepa.errors import UserError
from jepa.losses.barlow_twins import barlow_twins
from jepa.losses.sigreg import random_slices, slice_key
from jepa.losses.vicreg import vicreg_views
from jepa.methods.lejepa import LeJEPA, default_loss, default_model
from jepa.methods.views_loss import ViewsLoss, selection_score
from jepa.parallel import mesh as meshes
from jepa.parallel import partition
from jepa.training import config as configs
from jepa.training import loop
from jepa.training.optimizer import flatten
from jepa.training.state import Initializer

IMAGES, SIDE = 8, 16


def tiny(**overrides):
    config = ConfigDict({"seed": 3, "method": "jepa.methods.lejepa.LeJEPA", "dtype": "float32"})
    config.data = {"path": "unused", "frames": 1}
    config.mesh = configs.default_mesh_config()
    config.model = default_model()
    config.model.encoder.update(patch=4, width=16, depth=2, heads=2)
    # Colours are the views' own matter, and long to compile.
    plain = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
    config.model.global_views.update(plain, size=12)
    config.model.local_views.update(plain, count=2, size=8)
    config.model.projector.update(features=8, hidden=(24, 16))
    config.loss = default_loss()
    config.loss.sigreg.slices = 16
    config.optimizer = {"name": "sgd", "learning_rate": 1e-2}
    config.train = {"steps": 20, "global_batch": IMAGES}
    config.update_from_flattened_dict(overrides)
    return configs.resolve(config)


def batch(step=0):
    rng = np.random.default_rng(step)
    return {"video": rng.integers(0, 256, (IMAGES, 1, SIDE, SIDE, 3)).astype(np.uint8)}


SPEC = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch())
# Compiling is nearly all the time these tests take, and speed is not what they are about.
QUICK = {"xla_backend_optimization_level": 0}


def filled(shapes, seed=0):
    """Parameters and state of these shapes: random kernels, gains and variances of one, zeros."""
    rng = np.random.default_rng(seed)

    def fill(path, x):
        name = partition.path_name(path)
        if name.endswith("kernel"):
            return (rng.normal(size=x.shape) / 4).astype(x.dtype)
        return np.full(x.shape, float(name.endswith(("scale", "variance"))), x.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def fresh(method):
    """`(params, state)` without the time that compiling `init` takes."""
    return filled(jax.eval_shape(method.init, jax.random.key(0), batch()))


def differentiate(devices=1, **axes):
    """Loss, norm of the gradient, metrics and new state of a batch on a mesh, in float64."""
    config = tiny(
        dtype="float64", **{"model.encoder.depth": 1, "model.encoder.scan": False}, **axes
    )
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
    method = methods.from_config(config)
    configs.check_run(config, method, devices)

    def loss(params, state, batch):
        outputs, state = method.represent(params, None, state, batch, jax.random.key(5))
        value, metrics = method.objective(outputs, jnp.int32(7))
        return value, (metrics, state)

    def function(*args):
        (value, (metrics, state)), gradient = jax.value_and_grad(loss, has_aux=True)(*args)
        return {**metrics, "loss": value, "gradient_norm": optax.tree.norm(gradient)}, state

    params, state = fresh(method)
    params = jax.device_put(params, partition.shardings(mesh, method.partition_table, params))
    with jax.set_mesh(mesh):
        program = jax.jit(function, compiler_options=QUICK)
        data = put(batch(), meshes.batch_sharding(mesh))
        return jax.device_get(program(params, state, data)), state


@pytest.fixture(scope="module")
def reference():
    with jax.enable_x64(True):
        return differentiate()


@pytest.mark.parametrize(
    ("devices", "axes"),
    [
        (2, {}),
        (4, {"mesh.fsdp": 2, "mesh.context": 2}),
        (8, {"mesh.fsdp": 2, "mesh.tensor": 2}),
    ],
    ids=str,
)
def test_loss_gradient_and_batch_norm_agree_on_any_mesh(reference, devices, axes):
    with jax.enable_x64(True):
        got, _ = differentiate(devices, **axes)
    flat, wanted = ({**metrics, **flatten(state)} for metrics, state in (got, reference[0]))
    assert all(np.asarray(x).dtype == np.float64 for x in flat.values())
    for name, value in wanted.items():
        np.testing.assert_allclose(flat[name], value, rtol=1e-9, err_msg=name)


def test_the_state_moves_and_nothing_is_zero(reference):
    (metrics, after), before = reference
    before = flatten(before)
    for name, value in flatten(after).items():
        assert not np.array_equal(value, before[name]), name
    for name in ("invariance", "sigreg", "selection_score", "projection_std", "feature_std"):
        assert np.isfinite(metrics[name]) and metrics[name] > 0


@pytest.mark.parametrize("cached", [False, True])
def test_micro_batches_and_bfloat16_keep_the_types_of_the_state(cached):
    options = {"train.accumulate": 2, "train.gradient_cache": cached, "dtype": "bfloat16"}
    config = tiny(**options)
    method = methods.from_config(config)
    step, mesh = loop.make_step(config, method), meshes.make_mesh({}, jax.devices()[:1])
    start = Initializer(method, step.optimizer, mesh, SPEC, seed=config.seed, dtype=config.dtype)
    assert start.shapes.target_params is None and step.ema is None  # there is no teacher
    after, metrics = jax.eval_shape(step, start.shapes, SPEC)
    of = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert of(after) == of(start.shapes)
    assert metrics["loss"].dtype == np.float32


def represent(method):
    return lambda *args: method.represent(args[0], None, *args[1:])


def test_outputs_are_rows_of_images():
    method = LeJEPA(tiny())
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch())
    outputs, _ = jax.eval_shape(represent(method), params, state, batch(), jax.random.key(0))
    shapes = {name: x.shape for name, x in outputs.tokens.items()}
    assert shapes == {"global": (IMAGES, 2, 8), "local": (IMAGES, 2, 8)}
    assert outputs.pooled["features"].shape == (IMAGES, 16)
    partition.specs(method.partition_table, params)


def test_features_of_whole_images():
    """By batch norm's averages: an image's vectors do not depend on its neighbours."""
    method = LeJEPA(tiny(**{"model.feature_layers": 2}))
    params, state = fresh(method)
    embed = jax.jit(lambda x: method.embed(params, state, {"video": x}), compiler_options=QUICK)
    images = batch()["video"]
    first = embed(images)
    second = embed(np.concatenate([images[:1], images[:-1]]))
    assert first.pooled["video"].shape == (IMAGES, 32) and first.tokens["video"].shape[1] == 16
    for name in ("video", "projection"):
        np.testing.assert_allclose(first.pooled[name][0], second.pooled[name][0], rtol=1e-5)
        assert np.abs(first.pooled[name][0] - first.pooled[name][1]).max() > 1e-3
    means = np.asarray(first.tokens["video"]).mean(1)
    np.testing.assert_allclose(first.pooled["video"][:, 16:], means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_other_norms_have_no_state(norm):
    method = LeJEPA(tiny(**{"model.projector.norm": norm}))
    params, state = jax.eval_shape(method.init, jax.random.key(0), batch())
    assert not state
    _, after = jax.eval_shape(represent(method), params, state, batch(), jax.random.key(0))
    assert not after
    partition.specs(method.partition_table, params)


def test_positions_of_local_views_span_the_global_ones():
    assert LeJEPA(tiny()).encoder.pretrain_grid == 3
    assert LeJEPA(tiny(**{"model.stretch_positions": False})).encoder.pretrain_grid is None


def projections(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return tuple((scale * rng.normal(size=(n, 12, 5))).astype("float32") for n in (2, 3))


def settings(**overrides):
    config = default_loss()
    config.sigreg.slices = 32
    config.update_from_flattened_dict(overrides)
    return ViewsLoss(config, seed=7)


def epps_pulley(x, slices, points):
    """The statistic by its definition, with complex numbers; `x` `[N, P]`, float64."""
    ecf = np.exp(1j * points[:, None, None] * (x @ slices)).mean(1)
    gaussian = np.exp(-(points**2) / 2)
    error = np.abs(ecf - gaussian[:, None]) ** 2 * gaussian[:, None]
    return len(x) * np.trapezoid(error, points, axis=0).mean()


@pytest.mark.parametrize("centre", ["global", "all"])
@pytest.mark.parametrize(
    ("form", "end", "points"),
    [("integral", 5.0, np.linspace(-5, 5, 17)), ("folded", 3.0, np.linspace(-3, 3, 33))],
)
def test_the_loss_is_the_published_formula(centre, form, end, points):
    of_global, of_local = projections()
    loss = settings(**{"centre": centre, "sigreg.form": form, "sigreg.t_max": end})
    value, metrics = loss(jnp.asarray(of_global), jnp.asarray(of_local), step=jnp.int32(4))
    views = np.concatenate([of_global, of_local]).astype("float64")
    middle = (of_global if centre == "global" else views).mean(0)
    invariance = np.mean([np.mean((view - middle) ** 2) for view in views])
    slices = np.asarray(random_slices(slice_key(7, 4), 5, 32, jnp.float32), "float64")
    gaussian = np.mean([epps_pulley(view, slices, points) for view in views])
    np.testing.assert_allclose(metrics["invariance"], invariance, rtol=1e-5)
    np.testing.assert_allclose(metrics["sigreg"], gaussian, rtol=1e-4)
    wanted = 0.95 * invariance + 0.05 * gaussian
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    np.testing.assert_allclose(metrics["selection_score"], wanted / 0.05**0.4, rtol=1e-4)
    np.testing.assert_allclose(selection_score(2.0, 0.5, 1.0), 4.0)
    np.testing.assert_allclose(metrics["projection_std"], views.std(axis=1).mean(), rtol=1e-5)


def test_collapsed_projections_are_pushed_apart():
    """Beside one another at 0, where SIGReg's force is smallest; a step makes each view wider."""
    x = [jnp.asarray(x) for x in projections(scale=0.01)]

    def value(weight):
        return lambda x: settings(sigreg_weight=weight)(x[0], x[1], step=jnp.int32(0))[0]

    def spread(weight):
        gradient = jax.jit(jax.grad(value(weight)), compiler_options=QUICK)(x)
        moved = [a - 0.5 * g for a, g in zip(x, gradient, strict=True)]
        return np.concatenate([np.std(a, axis=1).ravel() for a in moved])

    before = np.concatenate([np.std(a, axis=1).ravel() for a in x])
    assert spread(0.5).mean() > 1.02 * before.mean()
    # Without SIGReg the views shrink to their centre, and nothing holds the centres apart.
    assert spread(0.0).mean() < before.mean()


def test_baselines_see_the_same_projections():
    of_global, of_local = projections()
    both = np.concatenate([of_global, of_local])
    value, metrics = settings(kind="vicreg")(of_global, of_local, step=0)
    np.testing.assert_allclose(value, vicreg_views(both)[0], rtol=1e-6)
    assert "selection_score" not in metrics
    value, _ = settings(kind="barlow_twins")(of_global, None, step=0)
    np.testing.assert_allclose(value, barlow_twins(*of_global)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.global_views.size", 13, r"global_views\.size is 13"),
        ("model.global_views.count", 0, "draw at least one"),
        ("model.local_views.scale", (0.5, 0.2), r"model\.local_views\.scale"),
        ("model.projector.norm", "group", r"projector\.norm is 'group'"),
        ("model.feature_layers", 3, "feature_layers is 3"),
        ("loss.kind", "dino", r"loss\.kind is 'dino'"),
        ("loss.kind", "barlow_twins", "compares two views"),
        ("loss.centre", "local", r"loss\.centre is 'local'"),
        ("loss.sigreg.form", "simpson", r"sigreg\.form"),
        ("loss.sigreg_weight", 1.5, "sigreg_weight is 1.5"),
        ("data.frames", 2, "frames is 2"),
        ("mesh.tensor", 4, "does not divide"),
    ],
)
def test_a_mistake_in_the_config_is_named(key, value, message):
    config = tiny(**{key: value})
    method = LeJEPA(config)
    with pytest.raises(UserError, match=message):
        configs.check_run(config, method, 4)


def test_a_single_view_is_no_pair():
    config = tiny(**{"model.global_views.count": 1, "model.local_views.count": 0})
    with pytest.raises(UserError, match="none can agree"):
        configs.check_run(config, LeJEPA(config), 1)


def test_an_unknown_key_is_named():
    config = tiny()
    with config.unlocked():
        config.model.projector.widht = 3
    with pytest.raises(UserError, match=r"model\.projector\.widht"):
        LeJEPA(config)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"slices": 0}, "sigreg.slices is 0; give 1 or more"),
        ({"knots": 1}, "sigreg.knots is 1"),
        ({"form": "half"}, "sigreg.form is 'half'"),
        ({"statistic": "moments", "chunk": 8}, "sigreg.chunk is 8, which statistic='moments'"),
    ],
)
def test_options_of_sigreg_that_cannot_be_are_named(values, words):
    loss = default_loss()
    loss.sigreg.update(values)
    with pytest.raises(UserError, match=words):
        ViewsLoss(loss, seed=0).check(**{"global": 2, "local": 0})
