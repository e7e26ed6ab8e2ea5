"""Meta's `.pt` files against plain torch forward passes written from the facts."""

from functools import partial

import hugging
import jax
import jax.numpy as jnp
import meta_torch as meta
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import VJEPA2Config, VJEPA2Model

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted, registry, trained
from jepa.interop.meta import HEADS as HEADS_BY_WIDTH
from jepa.interop.registry import Settings
from jepa.interop.tensors import open_tensors
from jepa.models.mask_predictor import MaskPredictor
from jepa.models.vit import IMAGE, VIDEO, VideoTransformer
from jepa.nn.rotary import grid_positions

WIDTH, HEADS, HIDDEN, PATCH = 40, 2, 96, 4
P_WIDTH, P_HEADS, P_HIDDEN, P_DEPTH, TOKENS = 24, 3, 48, 2, 3
jit = partial(jax.jit, compiler_options=hugging.FAST)


def networks(kind, seed):
    """Random tensors of encoder and predictor, by Meta's names."""
    g = torch.Generator().manual_seed(seed)
    depth, levels = (4, 2) if kind == "v_jepa_2_1" else (2, 0)
    cell = (PATCH, PATCH) if kind == "i_jepa" else (2, PATCH, PATCH)
    encoder = meta.named({"patch_embed.proj": meta.conv(WIDTH, *cell, generator=g)})
    encoder |= meta.blocks("blocks", depth, WIDTH, HIDDEN, g)
    features, parts = WIDTH * max(levels, 1), {}
    if levels:
        parts |= {f"norms_block.{i}": meta.norm(WIDTH, g) for i in range(levels)}
        parts["patch_embed_img.proj"] = meta.conv(WIDTH, 1, PATCH, PATCH, generator=g)
        encoder |= {
            f"{m}_mod_embed": torch.randn(1, 1, WIDTH, generator=g) for m in ("img", "video")
        }
    else:
        parts["norm"] = meta.norm(WIDTH, g)
    encoder |= meta.named(parts)
    parts = {
        "predictor_norm": meta.norm(P_WIDTH, g),
        "predictor_proj": meta.linear(features, P_WIDTH, g),
    }
    if levels:
        parts["predictor_embed.0"] = meta.linear(WIDTH, features, g)
        parts["predictor_embed.2"] = meta.linear(P_WIDTH, WIDTH, g)
        parts["predictor_proj_context"] = meta.linear(features, P_WIDTH, g)
    else:
        parts["predictor_embed"] = meta.linear(P_WIDTH, WIDTH, g)
    predictor = meta.named(parts) | meta.blocks("predictor_blocks", P_DEPTH, P_WIDTH, P_HIDDEN, g)
    names = ["mask_token"] if kind == "i_jepa" else [f"mask_tokens.{i}" for i in range(TOKENS)]
    predictor |= {name: torch.randn(1, 1, P_WIDTH, generator=g) for name in names}
    if levels:
        for m in ("img", "video"):
            predictor[f"{m}_mod_embed"] = torch.randn(1, 1, P_WIDTH, generator=g)
    if kind == "v_jepa":
        encoder["pos_embed"] = meta.table_3d((8, 3, 3), WIDTH)
        predictor["predictor_pos_embed"] = meta.table_3d((8, 3, 3), P_WIDTH)
    if kind == "i_jepa":
        encoder["pos_embed"] = meta.table_2d(3, WIDTH)
        predictor["predictor_pos_embed"] = meta.table_2d(3, P_WIDTH)
    if kind == "v_jepa_2":
        # Training drags a table along that rotary positions make no use of.
        encoder["pos_embed"] = torch.zeros(1, 9, WIDTH)
    return encoder, predictor


SETTINGS = {
    "i_jepa": {"encoder.heads": HEADS, "predictor.heads": P_HEADS},
    "v_jepa": {"encoder.heads": HEADS, "predictor.heads": P_HEADS},
    "v_jepa_2": {"num_attention_heads": HEADS, "pred_num_attention_heads": P_HEADS},
    "v_jepa_2_1": {
        "encoder.heads": HEADS,
        "encoder.taps": [2, 4],
        "encoder.pretrain_grid": 5,
        "predictor.heads": P_HEADS,
    },
}
KINDS = tuple(SETTINGS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of each kind: tensors of both networks, the file, our parameters, the modules' fields."""
    found = {}
    for kind in KINDS:
        encoder, predictor = networks(kind, 0)
        wrapper = "module." if kind == "i_jepa" else meta.WRAPPED
        directory = tmp_path_factory.mktemp(kind)
        content = {
            "encoder": meta.wrapped({k: t + 1 for k, t in encoder.items()}, wrapper),
            "predictor": meta.wrapped(predictor, wrapper),
            "ema_encoder" if kind == "v_jepa_2_1" else "target_encoder": meta.wrapped(
                encoder, wrapper
            ),
            "opt": {
                "state": {0: {"exp_avg": torch.zeros(3), "step": 4}},
                "param_groups": [{"lr": 0.1}],
            },
            "scaler": None,
            "epoch": 3,
            "loss": 0.5,
        }
        torch.save(content, directory / "published.pt")
        settings = Settings(values=SETTINGS[kind])
        convert.convert(
            kind, directory / "published.pt", directory / "converted", settings=settings
        )
        fields = converted.about(directory / "converted")["fields"]
        params = converted.load(directory / "converted")
        found[kind] = encoder, predictor, directory, params, fields
    return found


def torch_encoder(kind, state, video, ids=None):
    """Tokens of all layers, and of the whole: after the last norm, all levels for 2.1."""
    video = torch.as_tensor(video)
    image = video.shape[1] == 1
    name = "patch_embed.proj"
    if kind == "v_jepa_2_1" and image:
        name = "patch_embed_img.proj"
    elif kind != "i_jepa" and image:
        video = video.expand(-1, 2, -1, -1, -1)
    x = meta.tokens_of(video, state, name)
    rows, columns = video.shape[2] // PATCH, video.shape[3] // PATCH
    grid = (x.shape[1] // (rows * columns), rows, columns)
    if kind == "v_jepa_2_1":
        x = x + state["img_mod_embed" if image else "video_mod_embed"]
    if kind in ("v_jepa", "i_jepa"):
        made_for = 3 if kind == "i_jepa" else (8, 3, 3)
        x = x + meta.stretched(state["pos_embed"], made_for, grid)
    places, tiled = None, kind == "v_jepa_2"
    if kind in ("v_jepa_2", "v_jepa_2_1"):
        every = torch.arange(x.shape[1])[None]
        places = meta.places_of(every, grid, 5 if kind == "v_jepa_2_1" else None)
    levels = []
    for i in range(4 if kind == "v_jepa_2_1" else 2):
        x = meta.block(x, state, f"blocks.{i}", HEADS, places, tiled)
        levels.append(x)
    if kind != "v_jepa_2_1":
        return levels, meta.layer_norm(x, state, "norm")
    normed = [meta.layer_norm(levels[2 * i + 1], state, f"norms_block.{i}") for i in range(2)]
    return levels, torch.cat(normed, -1)


def clip(frames, rows, columns, seed=0):
    shape = (2, frames, rows * PATCH, columns * PATCH, 3)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Frames, rows and columns: those of the table where there is one, others that are no square, and a
# single frame. (V-JEPA 2's own grid and I-JEPA's others are compared with transformers.)
GRIDS = {
    "i_jepa": [(1, 3, 3)],
    "v_jepa": [(16, 3, 3), (1, 4, 5)],
    "v_jepa_2": [(4, 2, 5)],
    "v_jepa_2_1": [(4, 2, 3), (1, 3, 4)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_outputs_at_any_size(models, kind):
    state, _, _, params, fields = models[kind]
    encoder = VideoTransformer(**fields["encoder"])
    deep = kind == "v_jepa_2_1"

    @jit
    def run(p, video):
        if deep:
            return encoder.apply({"params": p}, video, method="hierarchy"), ()
        return encoder.apply({"params": p}, video, None, taps, method="levels")

    taps = tuple(range(1, encoder.depth + 1))
    for frames, rows, columns in GRIDS[kind]:
        video = clip(frames, rows, columns)
        hidden, expected = torch_encoder(kind, state, video)
        whole, levels = run(params["encoder"], video)
        for ours, theirs in zip(levels, hidden, strict=not deep):
            hugging.assert_close(ours, theirs)
        hugging.assert_close(whole, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["i_jepa", "v_jepa", "v_jepa_2_1"])
def test_gradients_of_the_encoder(models, kind):
    state, _, _, params, fields = models[kind]
    state = {name: t.clone().requires_grad_() for name, t in state.items()}
    frames, rows, columns = GRIDS[kind][0]
    video = clip(frames, rows, columns)
    _, expected = torch_encoder(kind, state, video)
    weights = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(weights)).sum().backward()
    encoder = VideoTransformer(**fields["encoder"])

    def loss(p):
        whole = encoder.apply({"params": p}, video, method="hierarchy")
        return jnp.sum(whole * weights)

    ours = jit(jax.grad(loss))(params["encoder"])
    patches = state["patch_embed.proj.weight"].grad
    # I-JEPA's has no time.
    kernel = np.asarray(ours["patches"]["kernel"]).transpose(4, 3, 0, 1, 2).reshape(patches.shape)
    hugging.assert_close(kernel, patches, 1e-3)
    for i in range(encoder.depth):
        hugging.assert_close(
            ours["blocks"]["mlp"]["in"]["kernel"][i].T,
            state[f"blocks.{i}.mlp.fc1.weight"].grad,
            1e-3,
        )
        qkv = np.asarray(ours["blocks"]["attention"]["qkv"]["kernel"][i])
        hugging.assert_close(
            qkv.transpose(2, 1, 3, 0).reshape(3 * WIDTH, WIDTH),
            state[f"blocks.{i}.attn.qkv.weight"].grad,
            1e-3,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_predictor(models, kind):
    _, state, _, params, fields = models[kind]
    deep, rotary = kind == "v_jepa_2_1", kind in ("v_jepa_2", "v_jepa_2_1")
    grid = (1, 3, 3) if kind == "i_jepa" else (8, 3, 3)
    count = int(np.prod(grid))
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(count) for _ in range(2)])
    context, target = order[:, : count // 2], order[:, count // 2 : count - 2]
    features = WIDTH * (2 if deep else 1)
    seen = rng.normal(size=(2, context.shape[1], features)).astype(np.float32)
    index = 0 if kind == "i_jepa" else 1
    mode = IMAGE if kind == "v_jepa_2_1" else VIDEO

    x = torch.tensor(seen)
    if deep:
        x = F.gelu(meta.apply(x, state, "predictor_embed.0"))
    x = meta.apply(x, state, "predictor_embed.2" if deep else "predictor_embed")
    blank = state["mask_token" if kind == "i_jepa" else f"mask_tokens.{index}"]
    x = torch.cat([x, blank.expand(2, target.shape[1], P_WIDTH)], 1)
    ids = torch.tensor(np.concatenate([context, target], 1))
    if not rotary:
        x = x + state["predictor_pos_embed"][0][ids]
    if deep:
        x = x + state["img_mod_embed"]
    places = meta.places_of(ids, grid) if rotary else None
    for i in range(P_DEPTH):
        x = meta.block(x, state, f"predictor_blocks.{i}", P_HEADS, places, kind == "v_jepa_2")
    x = meta.layer_norm(x, state, "predictor_norm")
    expected = meta.apply(x[:, context.shape[1] :], state, "predictor_proj")

    predictor = MaskPredictor(**fields["predictor"])

    def run(p, seen, context, target):
        variables, options = {"params": p}, {"mask_token": index, "modality": mode}
        return predictor.apply(variables, seen, context, target, grid_positions(grid), **options)

    ours, of_context = jit(run)(params["predictor"], seen, context, target)
    hugging.assert_close(ours, expected)
    if deep:
        expected = meta.apply(x[:, : context.shape[1]], state, "predictor_proj_context")
        hugging.assert_close(of_context, expected)


@pytest.mark.parametrize("kind", ["i_jepa", "v_jepa", "v_jepa_2_1"])
def test_the_way_back_has_every_tensor_bit_by_bit(models, kind, tmp_path):
    encoder, predictor, directory, params, _ = models[kind]
    convert.convert(kind, directory / "converted", tmp_path / "back")
    found = open_tensors(tmp_path / "back")
    wanted = {f"target_encoder.{name}": tensor for name, tensor in encoder.items()}
    wanted |= {f"predictor.{name}": tensor for name, tensor in predictor.items()}
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found.read(name), tensor)
    convert.convert(kind, tmp_path / "back", tmp_path / "again")
    again = converted.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("kind", ["i_jepa", "v_jepa"])
def test_fixed_tables_of_few_digits_are_read_back(models, kind, tmp_path):
    directory, settings = models[kind][2], Settings(values=SETTINGS[kind])
    source, few = directory / "published.pt", "bfloat16"
    convert.convert(kind, source, tmp_path / "ours", settings=settings, dtype=few)
    convert.convert(kind, tmp_path / "ours", tmp_path / "back")
    found = open_tensors(tmp_path / "back")
    assert {found.dtype(name) for name in found} == {np.dtype(few)}
    convert.convert(kind, tmp_path / "back", tmp_path / "again")


def test_v_jepa_2_becomes_a_model_of_transformers(models, tmp_path, caplog):
    state, _, directory, _, _ = models["v_jepa_2"]
    settings = Settings(values={**SETTINGS["v_jepa_2"], "crop_size": 3 * PATCH})
    convert.convert("v_jepa_2", directory / "published.pt", tmp_path / "ours", settings=settings)
    convert.convert("v_jepa_2", tmp_path / "ours", tmp_path / "theirs")
    assert VJEPA2Config.from_pretrained(tmp_path / "theirs").crop_size == 3 * PATCH
    with hugging.silent(caplog):
        model = VJEPA2Model.from_pretrained(tmp_path / "theirs")
    video = clip(6, 3, 3)
    with torch.no_grad():
        found = model.get_vision_features(hugging.torch_video(video))
    hugging.assert_close(found, torch_encoder("v_jepa_2", state, video)[1])


def test_the_side_of_v_jepa_2_s_frames_is_never_guessed(models, tmp_path, monkeypatch):
    """Meta's 256 and 384 are alike in all tensors, and transformers counts positions by it."""
    _, _, directory, _, _ = models["v_jepa_2"]
    assert converted.about(directory / "converted")["config"]["crop_size"] is None
    with pytest.raises(UserError, match="do not say crop_size.*say it with --set crop_size="):
        convert.convert("v_jepa_2", directory / "converted", tmp_path / "theirs")
    said = Settings(values={"crop_size": 384})
    convert.convert("v_jepa_2", directory / "converted", tmp_path / "theirs", settings=said)
    assert VJEPA2Config.from_pretrained(tmp_path / "theirs").crop_size == 384
    # Nor where a network of a run is put into the frame of such a file.
    monkeypatch.setitem(HEADS_BY_WIDTH, WIDTH, HEADS)
    with pytest.raises(UserError, match="do not say crop_size"):
        trained.frame(registry.model("v_jepa_2"), directory / "published.pt")
    settings = Settings(values={**SETTINGS["v_jepa_2"], "crop_size": "wide"})
    with pytest.raises(UserError, match="crop_size is 'wide'; it must be a positive whole number"):
        convert.convert("v_jepa_2", directory / "published.pt", tmp_path / "a", settings=settings)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_the_context_encoder_when_asked_for(models, tmp_path):
    _, _, directory, params, _ = models["v_jepa_2"]
    settings = Settings("encoder", SETTINGS["v_jepa_2"])
    convert.convert("v_jepa_2", directory / "published.pt", tmp_path / "to", settings=settings)
    found = converted.load(tmp_path / "to", part="encoder")
    np.testing.assert_allclose(found["norm"]["bias"], params["encoder"]["norm"]["bias"] + 1)


def test_what_is_another_model_is_refused(models, tmp_path):
    files = {kind: models[kind][2] / "published.pt" for kind in KINDS}
    for kind, file, complaint in (
        ("v_jepa_2_1", files["v_jepa_2"], "no target_encoder.module.backbone.norms_block"),
        ("v_jepa_2", files["v_jepa_2_1"], "missing .*norm.weight.*unknown"),
        ("v_jepa", files["v_jepa_2_1"], "lacks ema_encoder.module.backbone.pos_embed"),
        ("i_jepa", files["v_jepa"], r"has shape \(40, 3, 2, 4, 4\)"),
        ("v_jepa_2_classifier", files["v_jepa_2"], "no config.json"),
    ):
        with pytest.raises(UserError, match=complaint):
            convert.convert(
                kind, file, tmp_path / "to", settings=Settings(values=SETTINGS.get(kind, {}))
            )
    with pytest.raises(UserError, match="say it with --set encoder.heads=NUMBER"):
        convert.convert("v_jepa", files["v_jepa"], tmp_path / "to")
    with pytest.raises(UserError, match="--set encoder.hedas: there is no such key"):
        settings = Settings(values={"encoder.hedas": 2})
        convert.convert("v_jepa", files["v_jepa"], tmp_path / "to", settings=settings)
    with pytest.raises(UserError, match="no encoder ema_encoder"):
        convert.convert(
            "v_jepa", files["v_jepa"], tmp_path / "to", settings=Settings("ema_encoder")
        )
    content = torch.load(files["v_jepa"])
    content["target_encoder"][f"{meta.WRAPPED}pos_embed"] *= 1.1
    torch.save(content, tmp_path / "learnt.pt")
    with pytest.raises(UserError, match="is not the fixed table"):
        settings = Settings(values=SETTINGS["v_jepa"])
        convert.convert("v_jepa", tmp_path / "learnt.pt", tmp_path / "to", settings=settings)
    assert not list(tmp_path.glob("to*"))
