"""ViT, DINOv2 and SigLIP 2 against transformers: the same function, the same file when back."""

import json
import shutil
from functools import partial

import hugging
import image_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from image_models import DEPTH, KINDS, PATCH, SIDE, WIDTH
from jax.sharding import Mesh
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from configs.vl_jepa import quickstart
from experiments import convert
from jepa import methods
from jepa.errors import UserError
from jepa.interop import converted, parameters, starting
from jepa.methods import x_encoders
from jepa.models.image_tower import IMAGE_TOWERS, AttentionPooling, ImageTower
from jepa.parallel import partition

jit = partial(jax.jit, compiler_options=hugging.FAST)
# More rows, fewer columns than the table of positions has.
OTHER = (4, 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For each kind, made when asked: theirs, its directories, our parameters and fields."""
    made = {}

    def get(kind):
        if kind not in made:
            name, _ = KINDS[kind]
            theirs, directory = image_models.make(kind), tmp_path_factory.mktemp(kind)
            theirs.save_pretrained(directory / "published")
            (directory / "published" / "preprocessor_config.json").write_text("{}")
            convert.convert(name, directory / "published", directory / "converted")
            fields = converted.about(directory / "converted")["fields"]
            made[kind] = theirs, directory, converted.load(directory / "converted"), fields
        return made[kind]

    return get


def images(grid, batch=2):
    shape = (batch, grid[0] * PATCH, grid[1] * PATCH, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "grid", [pytest.param((SIDE, SIDE), marks=pytest.mark.slow), OTHER], ids=str
)
def test_every_hidden_state_and_the_outputs(models, kind, grid):
    theirs, _, params, fields = models(kind)
    with torch.no_grad():
        expected = image_models.run(theirs, images(grid))
    tower = ImageTower(**fields["encoder"])
    taps = tuple(range(DEPTH + 1))
    run = jit(lambda p, x: tower.apply({"params": p}, x, taps, method="levels"))
    tokens, levels = run(params["encoder"], images(grid))
    hidden = expected.hidden_states
    assert len(levels) == len(hidden) == DEPTH + 1
    for ours, other in zip(levels, hidden, strict=True):
        hugging.assert_close(ours, other)
    hugging.assert_close(tokens, expected.last_hidden_state)
    if "pool" in fields:
        pool = AttentionPooling(**fields["pool"])
        hugging.assert_close(
            jit(pool.apply)({"params": params["pool"]}, tokens), expected.pooler_output
        )


PUBLISHED = {
    "vit_base_patch16_224": ("vit", 224, lambda: ViTModel(ViTConfig())),
    "dinov2_base": (
        "dinov2",
        518,
        lambda: Dinov2Model(Dinov2Config(image_size=518, patch_size=14)),
    ),
    "siglip2_base_patch16_224": ("siglip", 224, lambda: SiglipVisionModel(SiglipVisionConfig())),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_the_same_function(name, tmp_path):
    torch.manual_seed(0)
    model, size, make = PUBLISHED[name]
    theirs = make().eval()
    theirs.save_pretrained(tmp_path / "published")
    convert.convert(model, tmp_path / "published", tmp_path / "converted")
    fields = converted.about(tmp_path / "converted")["fields"]["encoder"]
    # Where a directory says nothing of pixels, its kind of tower decides.
    published = {k: v for k, v in IMAGE_TOWERS[name].items() if k != "normalisation"}
    assert published.items() <= fields.items()
    image = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
    tower = ImageTower(**fields)
    params = converted.load(tmp_path / "converted", part="encoder")
    ours = jit(lambda p, x: tower.apply({"params": p}, x, method="levels")[0])(params, image)
    with torch.no_grad():
        hugging.assert_close(ours, image_models.run(theirs, image).last_hidden_state)


@pytest.mark.parametrize(
    "kind",
    [k if k == "registers" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_gradients(models, kind, tmp_path):
    """Gradients, laid out as theirs by the same table that exports, against autograd's."""
    theirs, directory, params, fields = models(kind)
    tower = ImageTower(**fields["encoder"])
    x = images(OTHER)
    shape = (2, tower.prefix() + OTHER[0] * OTHER[1], WIDTH)
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    theirs.zero_grad()
    (image_models.run(theirs, x).last_hidden_state * torch.tensor(weights)).sum().backward()

    def loss(p):
        return jnp.sum(tower.apply({"params": p}, x, method="levels")[0] * weights)

    ours = {**params, "encoder": jit(jax.grad(loss))(params["encoder"])}
    about = converted.about(directory / "converted")
    converted.save(tmp_path / "gradients", jax.tree.map(np.asarray, ours), about)
    convert.convert(KINDS[kind][0], tmp_path / "gradients", tmp_path / "theirs")
    state = type(theirs).from_pretrained(tmp_path / "theirs").state_dict()
    learnt = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    scale = max(gradient.abs().max() for gradient in learnt.values())
    for name, gradient in learnt.items():
        if name.endswith("k_proj.bias"):
            # What is added to all keys alike changes no attention: rounding is all there is.
            assert state[name].abs().max() <= 1e-6 * scale
        else:
            hugging.assert_close(state[name], gradient, 1e-3)
    spare = {name for name, _ in theirs.named_parameters()} - learnt.keys()
    assert all(name.split(".")[0] in ("head", "pooler") or "mask" in name for name in spare)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_identical_and_loads_silently(models, kind, tmp_path, caplog):
    theirs, directory, _, _ = models(kind)
    convert.convert(KINDS[kind][0], directory / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(directory / "published")
    for name in ("config.json", "preprocessor_config.json"):
        said = [
            json.loads((d / name).read_text()) for d in (tmp_path / "back", directory / "published")
        ]
        assert said[0] == said[1]
    with hugging.silent(caplog):
        again = type(theirs).from_pretrained(tmp_path / "back")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def whole_siglip():
    config = SiglipConfig(
        text_config={
            **{k: v for k, v in image_models.SIZES.items() if k != "patch_size"},
            "intermediate_size": 20,
            "vocab_size": 30,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={**image_models.IMAGE, "intermediate_size": 40},
    )
    return hugging.randomise(SiglipModel(config))


def classifier():
    config = ViTConfig(**image_models.IMAGE, intermediate_size=40, num_labels=5)
    return hugging.randomise(ViTForImageClassification(config))


@pytest.mark.parametrize(
    ("name", "make", "kept"),
    [("siglip", whole_siglip, "text_model"), ("vit", classifier, "classifier")],
)
def test_what_is_no_tower_comes_back_too(name, make, kept, tmp_path, caplog):
    theirs = make()
    theirs.save_pretrained(tmp_path / "published")
    convert.convert(name, tmp_path / "published", tmp_path / "converted")
    assert kept in converted.load(tmp_path / "converted", part="rest")
    convert.convert(name, tmp_path / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(tmp_path / "published")
    with hugging.silent(caplog):
        again = type(theirs).from_pretrained(tmp_path / "back")
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    assert "encoder" in parameters.parts(tmp_path / "published")


def test_a_directory_that_contradicts_itself_is_refused(models, tmp_path):
    published = tmp_path / "published"
    models("dinov2")[0].save_pretrained(published)
    config = json.loads((published / "config.json").read_text())
    for change, complaint in (
        ({"num_hidden_layers": 1}, "18 tensors are unknown .encoder.layer.1"),
        ({"use_swiglu_ffn": True}, "tensors are missing .encoder.layer.0.mlp.weights_in.*unknown"),
        ({"image_size": 16}, "1 tensor is of another shape .embeddings.position_embeddings"),
        ({"model_type": "dinov2_with_registers"}, "1 tensor is missing .*register_tokens"),
        ({"model_type": "vit"}, "model_type 'vit', not 'dinov2' or 'dinov2_with_registers'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5, which does not divide"),
        ({"image_size": [12, 12]}, "image_size is .12, 12."),
    ):
        (published / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=complaint):
            convert.convert("dinov2", published, tmp_path / "converted")
        assert not list(tmp_path.glob("converted*"))
    (published / "config.json").write_text(json.dumps(config))
    other = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}
    (published / "preprocessor_config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="image_mean and image_std are .*0.4.*, not .*0.485"):
        convert.convert("dinov2", published, tmp_path / "converted")
    (published / "preprocessor_config.json").unlink()
    weights = published / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(UserError, match="is truncated"):
        convert.convert("dinov2", published, tmp_path / "converted")
    assert not list(tmp_path.glob("converted*"))


def x_encoder(models, kind, weights, **changes):
    """VL-JEPA with that tower as its X-encoder."""
    config = quickstart.get_config()
    fields = models(kind)[3]["encoder"]
    config.model.x_encoder = x_encoders.default()
    config.model.x_encoder.update({"kind": "image", **fields, "weights": str(weights), **changes})
    return methods.from_config(config)


@pytest.mark.parametrize("kind", ["registers", pytest.param("siglip", marks=pytest.mark.slow)])
def test_vl_jepa_s_x_encoder_is_the_published_tower_frame_by_frame(models, kind, tmp_path):
    theirs, directory, _, fields = models(kind)
    shape = (2, 3, OTHER[0] * PATCH, OTHER[1] * PATCH, 3)
    video = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    if kind == "siglip":
        mean = std = [0.5] * 3
    frames = ((video / 255 - mean) / std).reshape(-1, *shape[2:]).astype(np.float32)
    with torch.no_grad():
        expected = image_models.run(theirs, frames).last_hidden_state
    expected = expected[:, -OTHER[0] * OTHER[1] :].reshape(2, -1, WIDTH)
    exported = tmp_path / "exported.safetensors"
    config = x_encoder(models, kind, "").model.x_encoder.to_dict()
    about = {"fields": json.dumps(config), "part": "x_encoder", "method": "vl_jepa"}
    parameters.save(exported, models(kind)[2]["encoder"], about)
    for weights in (directory / "published", directory / "converted", exported):
        method = x_encoder(models, kind, weights)
        found = starting.read(method.pretrained()["x_encoder"])
        jax.tree.map(np.testing.assert_array_equal, found, models(kind)[2]["encoder"])
    hugging.assert_close(jit(method.visual_tokens)({"x_encoder": found}, video), expected)
    for changes, complaint in (
        ({"normalisation": "half" if mean[0] < 0.5 else "imagenet"}, "made with normalisation="),
        ({"heads": 4}, "made with heads=2"),
        ({"resize": "linear"}, "made with resize="),
        ({"table_grid": (1, 2, 2)}, "made with table_grid=.1, 3, 3. and the config says .1, 2, 2."),
        ({"depth": 3}, "has of another shape: blocks/"),
    ):
        for weights in (directory / "published", exported):
            with pytest.raises(UserError, match=complaint):
                x_encoder(models, kind, weights, **changes).pretrained()
    # What was trained goes back into the frame that it came from.
    name = KINDS[kind][0]
    convert.convert(name, exported, tmp_path / "back", like=directory / "published")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(directory / "published")


def test_plans_say_all_that_decides_the_function(models):
    said = models("registers")[3]["encoder"]
    assert set(x_encoders.FUNCTION["image"]) - {"temporal"} <= set(said)
    assert set(IMAGE_TOWERS["dinov2_with_registers_giant"]) <= set(said)


def test_parameters_go_straight_to_their_shards(models):
    _, directory, params, _ = models("registers")
    method = x_encoder(models, "registers", directory / "published")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    wanted = partition.shardings(mesh, method.x_encoder.partition_table(), params["encoder"])

    def check(pending, sharding, whole):
        array = pending.read(sharding, "bfloat16")
        assert array.sharding == sharding
        np.testing.assert_array_equal(array, whole.astype("bfloat16"))

    found = method.pretrained()["x_encoder"]
    jax.tree.map(check, found, wanted, params["encoder"])


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_siglip_without_its_head_and_by_older_names(prefix, tmp_path):
    """Releases of transformers differ in what they put before the names of a vision model."""
    sizes = {**image_models.IMAGE, "intermediate_size": 40}
    theirs = SiglipVisionModel(SiglipVisionConfig(**sizes, vision_use_head=False))
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "published").mkdir()
    shutil.copy(tmp_path / "saved" / "config.json", tmp_path / "published")
    state = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / "published" / "model.safetensors", {"format": "pt"})
    convert.convert("siglip", tmp_path / "published", tmp_path / "converted")
    assert set(converted.load(tmp_path / "converted")) == {"encoder"}
    convert.convert("siglip", tmp_path / "converted", tmp_path / "back")
    assert hugging.tensors(tmp_path / "back") == hugging.tensors(tmp_path / "published")
