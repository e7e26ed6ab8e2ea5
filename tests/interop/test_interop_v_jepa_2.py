"""V-JEPA 2 against transformers: the same function, and the same file when it comes back."""

import json
from functools import partial

import hugging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted, parameters
from jepa.interop.registry import Settings
from jepa.models.attentive_probe import AttentiveProbe
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.vit import VideoTransformer
from jepa.nn.rotary import grid_positions

# An odd grid of 3x3, heads of 20 and of 8 channels, some of which are not turned.
PATCH, SIZE, FRAMES, CLASSES = 8, 24, 6, 5
GRID = (FRAMES // 2, SIZE // PATCH, SIZE // PATCH)
jit = partial(jax.jit, compiler_options=hugging.FAST)


def config():
    return VJEPA2Config(
        patch_size=PATCH,
        crop_size=SIZE,
        frames_per_clip=FRAMES,
        hidden_size=40,
        num_attention_heads=2,
        num_hidden_layers=3,
        mlp_ratio=48 / 11,
        num_pooler_layers=2,
        pred_hidden_size=24,
        pred_num_attention_heads=3,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=3,
        pred_zero_init_mask_tokens=False,
        num_labels=CLASSES,
    )


def video(frames=FRAMES):
    return np.random.default_rng(0).normal(size=(2, frames, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For both models: theirs, its directory, the converted directory and our parameters."""
    found = {}
    for name, kind in (
        ("v_jepa_2", VJEPA2Model),
        ("v_jepa_2_classifier", VJEPA2ForVideoClassification),
    ):
        theirs = hugging.randomise(kind._from_config(config(), attn_implementation="eager"))
        directory = tmp_path_factory.mktemp(name)
        theirs.save_pretrained(directory / "published")
        convert.convert(name, directory / "published", directory / "converted")
        params = converted.load(directory / "converted")
        fields = converted.about(directory / "converted")["fields"]
        found[name] = theirs, directory, params, fields
    return found


@pytest.fixture(scope="module")
def model(models):
    return models["v_jepa_2"]


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_every_hidden_state_and_the_output(model, frames):
    theirs, _, params, fields = model
    encoder = VideoTransformer(**fields["encoder"])
    hidden = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: hidden.append(out[0]))
        for layer in theirs.encoder.layer
    ]
    with torch.no_grad():
        last = theirs.get_vision_features(hugging.torch_video(video(frames)))
    for hook in hooks:
        hook.remove()
    taps = tuple(range(1, encoder.depth + 1))
    run = jit(lambda p, v: encoder.apply({"params": p}, v, None, taps, method="levels"))
    tokens, levels = run(params["encoder"], video(frames))
    assert len(hidden) == len(levels)
    for ours, expected in zip(levels, hidden, strict=True):
        hugging.assert_close(ours, expected)
    hugging.assert_close(tokens, last)


def test_gradients_of_the_encoder(model, tmp_path):
    """Gradients, laid out as theirs by the same table that exports, against autograd's."""
    theirs, _, params, fields = model
    weights = np.random.default_rng(1).normal(size=(2, int(np.prod(GRID)), 40)).astype(np.float32)
    theirs.zero_grad()
    (
        theirs.get_vision_features(hugging.torch_video(video())) * torch.tensor(weights)
    ).sum().backward()
    encoder = VideoTransformer(**fields["encoder"])

    def loss(p):
        return jnp.sum(encoder.apply({"params": p}, video()) * weights)

    gradients = {**params, "encoder": jit(jax.grad(loss))(params["encoder"])}
    about = converted.about(model[1] / "converted")
    converted.save(tmp_path / "gradients", jax.tree.map(np.asarray, gradients), about)
    convert.convert("v_jepa_2", tmp_path / "gradients", tmp_path / "theirs")
    ours = VJEPA2Model.from_pretrained(tmp_path / "theirs").state_dict()
    compared = 0
    for name, p in theirs.encoder.named_parameters():
        hugging.assert_close(ours[f"encoder.{name}"], p.grad, 1e-3)
        compared += 1
    assert compared == 4 + 3 * 16


@pytest.mark.parametrize("mask_index", [0, 1])
def test_predictor(model, mask_index):
    theirs, _, params, fields = model
    rng = np.random.default_rng(mask_index)
    order = np.stack([rng.permutation(int(np.prod(GRID))) for _ in range(2)])
    context, target = order[:, :11], order[:, 11:19]
    with torch.no_grad():
        tokens = theirs.get_vision_features(hugging.torch_video(video()))
        # The model's own forward pass takes the default index only.
        embed = theirs.predictor.embeddings.forward
        theirs.predictor.embeddings.forward = partial(embed, mask_index=mask_index)
        expected = theirs.predictor(tokens, [torch.tensor(context)], [torch.tensor(target)])
        theirs.predictor.embeddings.forward = embed
    predictor = MaskPredictor(**fields["predictor"])
    seen = np.take_along_axis(tokens.numpy(), context[..., None], axis=1)

    def run(p, x, context, target):
        places = grid_positions(GRID)
        variables = {"params": p}
        return predictor.apply(variables, x, context, target, places, mask_token=mask_index)[0]

    ours = jit(run)(params["predictor"], seen, context, target)
    hugging.assert_close(ours, expected.last_hidden_state)


def test_pooled_output_and_logits(models):
    theirs, _, params, fields = models["v_jepa_2_classifier"]
    with torch.no_grad():
        tokens = theirs.vjepa2.get_vision_features(hugging.torch_video(video()))
        pooled = theirs.pooler(tokens)
        logits = theirs(hugging.torch_video(video())).logits
    probe = AttentiveProbe(**fields["probe"])
    # What goes into the head comes out of one that changes nothing.
    headless = probe.clone(classes=40)
    head = {"kernel": np.eye(40, dtype=np.float32), "bias": np.zeros(40, np.float32)}

    def run(p, tokens):
        without = {"params": {**p, "head": head}}
        return probe.apply({"params": p}, tokens), headless.apply(without, tokens)

    ours = jit(run)(params["probe"], tokens.numpy())
    hugging.assert_close(ours[0], logits)
    hugging.assert_close(ours[1], pooled)


@pytest.mark.parametrize("name", ["v_jepa_2", "v_jepa_2_classifier"])
def test_round_trip_is_bit_identical_and_loads_silently(models, name, tmp_path, caplog):
    theirs, directory, _, _ = models[name]
    convert.convert(name, directory / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(directory / "published")
    said = [
        json.loads((d / "config.json").read_text())
        for d in (tmp_path / "back", directory / "published")
    ]
    assert said[0] == said[1]
    with hugging.silent(caplog):
        again = type(theirs).from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        clip = hugging.torch_video(video())
        ours, expected = again(clip)[0], theirs(clip)[0]
    hugging.assert_close(ours, expected)


def test_bfloat16_stays_bfloat16_both_ways(model, tmp_path):
    theirs = VJEPA2Model.from_pretrained(model[1] / "published", dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "published")
    convert.convert("v_jepa_2", tmp_path / "published", tmp_path / "converted")
    params = converted.load(tmp_path / "converted")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    convert.convert("v_jepa_2", tmp_path / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(tmp_path / "published")


def test_a_config_that_contradicts_the_checkpoint(model, tmp_path):
    published = tmp_path / "published"
    model[0].save_pretrained(published)
    said = json.loads((published / "config.json").read_text())
    for change, complaint in (
        ({"num_hidden_layers": 2}, "16 tensors are unknown .encoder.layer.2"),
        ({"num_hidden_layers": 4}, "16 tensors are missing .encoder.layer.3"),
        ({"patch_size": 16}, "1 tensor is of another shape .encoder.embeddings"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"model_type": "vit"}, "model_type 'vit'"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, which does not divide"),
        ({"tubelet_size": "two"}, "tubelet_size is 'two'"),
    ):
        (published / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(UserError, match=complaint):
            convert.convert("v_jepa_2", published, tmp_path / "converted")
        assert not list(tmp_path.glob("converted*"))


def test_what_a_run_trained_becomes_a_model_of_transformers(tmp_path, caplog):
    encoder = {"width": 24, "depth": 2, "heads": 2, "patch": PATCH, "tubelet": 2, "mlp_ratio": 2.0}
    predictor = {"width": 12, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "mask_tokens": 2}
    shared = {"rope": "tiled", "positions": "none", "gelu": "tanh"}
    encoder, predictor = encoder | shared, predictor | shared | {"mask_token_init": "zeros"}
    made = VideoTransformer(**encoder)
    speaks = MaskPredictor(**predictor, features=24)
    ids = jnp.arange(9)[None]
    shapes = {
        "encoder": jax.eval_shape(made.init, jax.random.key(0), video(2)),
        "predictor": jax.eval_shape(
            speaks.init, jax.random.key(0), jnp.zeros((1, 9, 24)), ids, ids, grid_positions(GRID)
        ),
    }
    rng = np.random.default_rng(0)
    params = {
        name: jax.tree.map(lambda s: 0.1 * rng.normal(size=s.shape).astype("f"), tree["params"])
        for name, tree in shapes.items()
    }
    run = tmp_path / "run.safetensors"
    fields = {"encoder": encoder, "predictor": predictor}
    about = {"method": "jepa.methods.v_jepa_2.VJEPA2", "part": "", "fields": json.dumps(fields)}
    parameters.save(run, params, about)
    with pytest.raises(UserError, match="does not say crop_size; say it with --set crop_size="):
        convert.convert("v_jepa_2", run, tmp_path / "theirs")
    settings = Settings(values={"crop_size": SIZE})
    convert.convert("v_jepa_2", run, tmp_path / "theirs", settings=settings)
    with hugging.silent(caplog):
        theirs = VJEPA2Model.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs.get_vision_features(hugging.torch_video(video(2)))
    hugging.assert_close(jit(made.apply)({"params": params["encoder"]}, video(2)), expected)

    for change, complaint in (
        (
            {"fields": json.dumps(fields | {"encoder": encoder | {"rope": "rotation"}})},
            "'tiled' only",
        ),
        ({"part": "encoder"}, "holds the encoder alone"),
    ):
        parameters.save(run, params, about | change)
        with pytest.raises(UserError, match=complaint):
            convert.convert("v_jepa_2", run, tmp_path / "again", settings=settings)
    with pytest.raises(UserError, match="none trains the whole of llama"):
        convert.convert("llama", run, tmp_path / "again")
