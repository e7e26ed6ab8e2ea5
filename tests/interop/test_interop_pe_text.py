"""Perception Encoder's text towers (`.pt`) against a torch module written from the facts."""

import hugging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_models
import torch
from torch import nn
from torch.nn import functional as F

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted, starting
from jepa.interop.registry import Settings
from jepa.interop.tensors import open_tensors
from jepa.methods import text_towers
from jepa.methods.vl_jepa import default_model
from jepa.models import flops
from jepa.models.text import PE_TEXTS, TextTransformer
from jepa.parallel import partition

WIDTH, HEADS, DEPTH, LENGTH = 24, 3, 2, text_models.LENGTH
VOCAB = text_models.VOCAB
SETTINGS = Settings(values={"tower.heads": HEADS})


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        matrices = {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.ModuleDict(matrices)

    def forward(self, x):
        y = self.ln_1(x)
        hidden = torch.full((x.shape[1],) * 2, float("-inf")).triu(1)
        x = x + self.attn(y, y, y, attn_mask=hidden, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Clip(nn.Module):
    """The text side, and names of the other."""

    def __init__(self, width=WIDTH, heads=HEADS, depth=DEPTH, vocab=VOCAB, length=LENGTH):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.zeros(length, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, width))
        self.visual = nn.Linear(2, 2)
        self.logit_scale = nn.Parameter(torch.ones([]))

    def hidden(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_final(x)

    def forward(self, ids):
        # The text's end has the highest id of all.
        last = self.hidden(ids)[torch.arange(len(ids)), ids.argmax(1)]
        return F.normalize(last @ self.text_projection, dim=-1)


def batch(vocab=VOCAB):
    """Ids that end with the highest one, padded with zeros as there, and the mask of ours."""
    ids, mask = text_models.batch()
    ids = np.where(mask, np.minimum(ids, vocab - 2), 0)
    ids[np.arange(len(ids)), mask.sum(1) - 1] = vocab - 1
    return ids.astype(np.int32), mask


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    theirs = hugging.randomise(Clip(), scale=0.2)
    directory = tmp_path_factory.mktemp("pe")
    (directory / "published").mkdir()
    torch.save(theirs.state_dict(), directory / "published" / "PE-Core-tiny.pt")
    (directory / "published" / "tokenizer.json").write_text("{}")
    convert.convert("pe_text", directory / "published", directory / "converted", settings=SETTINGS)
    return theirs, directory


def made(directory):
    fields = converted.about(directory / "converted")["fields"]["tower"]
    return TextTransformer(**fields), converted.load(directory / "converted", part="tower")


def test_hidden_states_and_embeddings(clip):
    theirs, directory = clip
    tower, params = made(directory)
    ids, mask = batch()
    run = jax.jit(
        lambda p: (
            tower.apply({"params": p}, ids, mask, method="hidden"),
            tower.apply({"params": p}, ids, mask),
        ),
        compiler_options=hugging.FAST,
    )
    tokens, vectors = run(params)
    with torch.no_grad():
        expected = theirs.hidden(torch.tensor(ids).long()).numpy()
        hugging.assert_close(vectors, theirs(torch.tensor(ids).long()))
    hugging.assert_close(np.asarray(tokens)[mask], expected[mask])


@pytest.mark.slow
def test_published_size_of_b16(tmp_path):
    published = PE_TEXTS["pe_core_b16_224"]
    names = {"width": "width", "depth": "depth", "vocab": "vocab", "max_length": "length"}
    # Heads of 64, which the files do not say.
    theirs = hugging.randomise(
        Clip(heads=16, **{theirs: published[ours] for ours, theirs in names.items()}), scale=0.02
    )
    torch.save(theirs.state_dict(), tmp_path / "PE-Core-B16-224.pt")
    convert.convert("pe_text", tmp_path / "PE-Core-B16-224.pt", tmp_path / "converted")
    fields = converted.about(tmp_path / "converted")["fields"]["tower"]
    assert published.items() <= fields.items()
    tower, params = made(tmp_path)
    ids, mask = batch(published["vocab"])
    vectors = jax.jit(tower.apply, compiler_options=hugging.FAST)({"params": params}, ids, mask)
    with torch.no_grad():
        hugging.assert_close(vectors, theirs(torch.tensor(ids).long()))


@pytest.mark.slow
def test_gradients(clip):
    theirs, directory = clip
    tower, params = made(directory)
    ids, mask = batch()
    weights = np.random.default_rng(1).normal(size=(len(ids), WIDTH)).astype(np.float32)
    theirs.zero_grad()
    (theirs(torch.tensor(ids).long()) * torch.tensor(weights)).sum().backward()

    def loss(p):
        return jnp.sum(tower.apply({"params": p}, ids, mask) * weights)

    ours = jax.jit(jax.grad(loss), compiler_options=hugging.FAST)(params)
    hugging.assert_close(ours["projection"]["kernel"], theirs.text_projection.grad, 1e-3)
    hugging.assert_close(ours["positions"]["embedding"], theirs.positional_embedding.grad, 1e-3)
    hugging.assert_close(ours["table"]["embedding"], theirs.token_embedding.weight.grad, 1e-3)
    for i, block in enumerate(theirs.transformer.resblocks):
        kernel = ours["blocks"]["mlp"]["in"]["kernel"][i]
        hugging.assert_close(kernel.T, block.mlp["c_fc"].weight.grad, 1e-3)


def test_it_comes_back_by_meta_s_names(clip, tmp_path):
    theirs, directory = clip
    convert.convert("pe_text", directory / "converted", tmp_path / "back")
    back = open_tensors(tmp_path / "back")
    # The image side and the scale stay behind.
    text = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if not name.startswith(("visual.", "logit_scale"))
    }
    assert set(back) == set(text)
    for name, tensor in text.items():
        assert back.read(name).tobytes() == tensor.numpy().tobytes()
    # A file by its name brings the tokenizer beside it, as its directory does.
    file = directory / "published" / "PE-Core-tiny.pt"
    convert.convert("pe_text", file, tmp_path / "by_name", settings=SETTINGS)
    assert (tmp_path / "by_name" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"
    convert.convert("pe_text", tmp_path / "back", tmp_path / "again")
    jax.tree.map(
        np.testing.assert_array_equal,
        converted.load(tmp_path / "again"),
        converted.load(directory / "converted"),
    )


def test_it_is_a_y_encoder(clip, monkeypatch):
    _, directory = clip
    fields = converted.about(directory / "converted")["fields"]["tower"]
    tiny = text_towers.Published(TextTransformer, "pe_text", fields)
    monkeypatch.setattr(text_towers, "TOWERS", {"pe_core_l14_336": tiny})
    config = default_model().y_encoder
    config.update(tower="pe_core_l14_336", weights=str(directory / "converted"))
    tower = text_towers.make(config, {"dtype": "float32", "param_dtype": "float32"})
    found = starting.read(text_towers.weights(config, tower))
    jax.tree.map(np.testing.assert_array_equal, found, made(directory)[1])
    partition.specs(tower.partition_table(), found)
    per_token = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH)
    forward = DEPTH * (5 * per_token + 2 * 2 * 5 * 5 * WIDTH) + 2 * WIDTH * WIDTH
    assert flops.text_tower(tower, 5) == forward
    text_towers.check_vocabulary(config, tower, VOCAB)
    with pytest.raises(UserError, match="has 60 ids, and the table of 'pe_core_l14_336' 40"):
        text_towers.check_vocabulary(config, tower, 60)
    # Sizes that a file cannot say are compared too.
    other = text_towers.Published(TextTransformer, "pe_text", {**fields, "heads": 4})
    monkeypatch.setattr(text_towers, "TOWERS", {"pe_core_l14_336": other})
    with pytest.raises(UserError, match="heads=3, and the config says 4"):
        text_towers.weights(config, text_towers.make(config, {}))


@pytest.mark.parametrize(("name", "millions"), [("pe_core_l14_336", 354), ("pe_core_g14_448", 537)])
def test_published_sizes(name, millions):
    """The model card's 0.31 and 0.47 billion leave out the table of tokens: 51 and 63 million."""
    tower = TextTransformer(**PE_TEXTS[name])
    ids = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), ids, ids > 0)["params"]
    partition.specs(tower.partition_table(), shapes)
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6) == millions


def test_what_is_no_such_file_is_refused(clip, tmp_path):
    theirs, directory = clip
    state = theirs.state_dict()
    torch.save({k: v for k, v in state.items() if k != "text_projection"}, tmp_path / "less.pt")
    torch.save(state | {"text_bias": torch.ones(2)}, tmp_path / "more.pt")
    torch.save({"visual.weight": torch.ones(2)}, tmp_path / "visual.pt")
    for name, settings, complaint in (
        ("less.pt", SETTINGS, "1 tensor is missing .text_projection"),
        ("more.pt", SETTINGS, "1 tensor is unknown .text_bias"),
        ("visual.pt", SETTINGS, "lacks token_embedding.weight, so it is of another model"),
        ("less.pt", Settings(), "heads of 64, .* do not divide .*--set tower.heads="),
        ("", SETTINGS, "has 3 files .*; name the one that is meant"),
    ):
        with pytest.raises(UserError, match=complaint):
            convert.convert("pe_text", tmp_path / name, tmp_path / "converted", settings=settings)
        assert not list(tmp_path.glob("converted*"))
