"""Meta's attentive probes of V-JEPA 2 (`.pt`) against a torch module written from the facts."""

import hugging
import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted
from jepa.interop.registry import Settings
from jepa.models.attentive_probe import AttentiveProbe

WIDTH, HEADS, CLASSES, BLOCKS = 32, 4, 7, 3


def mixed(q, k, v, heads):
    """Attention of `[B, N, D]` each."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Self-attention, or (of a query) cross-attention without an output projection."""

    def __init__(self, width, heads, crosses):
        super().__init__()
        self.heads = heads
        # torch's own epsilon, 1e-5.
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(width), nn.LayerNorm(width), Mlp(width)
        if crosses:
            matrices = {"q": nn.Linear(width, width), "kv": nn.Linear(width, 2 * width)}
            self.xattn = nn.ModuleDict(matrices)
        else:
            matrices = {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
            self.attn = nn.ModuleDict(matrices)

    def forward(self, x, seen=None):
        if seen is None:
            q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, -1)
            y = self.attn["proj"](mixed(q, k, v, self.heads))
        else:
            k, v = self.xattn["kv"](self.norm1(seen)).chunk(2, -1)
            y = mixed(self.xattn["q"](x), k, v, self.heads)
        x = x + y
        return x + self.mlp(self.norm2(x))


class Classifier(nn.Module):
    def __init__(self, width=WIDTH, heads=HEADS, classes=CLASSES):
        super().__init__()
        self.pooler = nn.Module()
        self.pooler.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.pooler.cross_attention_block = Block(width, heads, crosses=True)
        self.pooler.blocks = nn.ModuleList(
            [Block(width, heads, crosses=False) for _ in range(BLOCKS)]
        )
        self.linear = nn.Linear(width, classes)

    def forward(self, tokens):
        for block in self.pooler.blocks:
            tokens = block(tokens)
        query = self.pooler.query_tokens.expand(len(tokens), -1, -1)
        return self.linear(self.pooler.cross_attention_block(query, tokens)[:, 0])


def state(module):
    return {f"module.{name}": tensor for name, tensor in module.state_dict().items()}


def save(path, *modules):
    """A checkpoint as Meta's evaluation writes it."""
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {"classifiers": [state(m) for m in modules], "opt": [moments], "epoch": 20}
    torch.save({**content, "scaler": None, "batch_size": 4, "world_size": 64}, path)
    return path


@pytest.fixture(scope="module")
def probes():
    return [hugging.randomise(Classifier(), seed) for seed in (0, 1)]


HEADS_SAID = {"probe.heads": HEADS}


def tokens(width=WIDTH):
    # Small, so that epsilon counts.
    return 0.01 * np.random.default_rng(0).normal(size=(2, 9, width)).astype(np.float32)


def logits(params, fields, width=WIDTH):
    run = jax.jit(AttentiveProbe(**fields).apply, compiler_options=hugging.FAST)
    return run({"params": params}, tokens(width))


def test_logits(probes, tmp_path):
    save(tmp_path / "ssv2.pt", *probes)
    for number, probe in enumerate(probes):
        to, settings = tmp_path / f"probe_{number}", Settings(str(number), HEADS_SAID)
        convert.convert("v_jepa_2_probe", tmp_path / "ssv2.pt", to, settings=settings)
        params, fields = converted.load(to)["probe"], converted.about(to)["fields"]["probe"]
        assert fields["depth"] == BLOCKS + 1 and fields["classes"] == CLASSES
        with torch.no_grad():
            hugging.assert_close(logits(params, fields), probe(torch.tensor(tokens())))
    # Back to tensors by Meta's names, which are read again.
    convert.convert("v_jepa_2_probe", to, tmp_path / "back")
    kept = hugging.tensors(tmp_path / "back")
    whole = {f"classifiers.0.{name}": tensor for name, tensor in state(probes[1]).items()}
    for name, tensor in whole.items():
        parts = [kept.pop(name, None)]
        if ".kv." in name:
            parts = [kept.pop(name.replace(".kv.", f".{half}.")) for half in ("k", "v")]
        assert b"".join(raw for _, _, raw in parts) == tensor.numpy().tobytes()
    assert not kept
    convert.convert("v_jepa_2_probe", tmp_path / "back", tmp_path / "again")
    jax.tree.map(
        np.testing.assert_array_equal, converted.load(tmp_path / "again"), converted.load(to)
    )


def test_a_released_file_has_one_and_its_heads_are_sixteen(tmp_path, probes):
    path = save(tmp_path / "one.pt", probes[0])
    convert.convert("v_jepa_2_probe", path, tmp_path / "probe")
    said = converted.about(tmp_path / "probe")["fields"]["probe"]
    assert (said["heads"], said["eps"], said["mlp_ratio"]) == (16, 1e-5, 4.0)


@pytest.mark.slow
def test_published_size_of_the_giant_s(tmp_path):
    # 1408 wide, 16 heads, for the 174 classes of Something-Something.
    theirs = hugging.randomise(Classifier(1408, 16, 174), scale=0.02)
    convert.convert("v_jepa_2_probe", save(tmp_path / "ssv2.pt", theirs), tmp_path / "probe")
    params, fields = (
        converted.load(tmp_path / "probe")["probe"],
        converted.about(tmp_path / "probe")["fields"]["probe"],
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens(1408)))
    hugging.assert_close(logits(params, fields, 1408), expected)


def test_what_is_no_probe_is_refused(tmp_path, probes):
    several = save(tmp_path / "several.pt", *probes)
    torch.save({"encoder": {"module.backbone.norm.weight": torch.ones(3)}}, tmp_path / "e.pt")
    more = state(probes[0]) | {"module.verb_classifier.weight": torch.ones(2, WIDTH)}
    torch.save({"classifiers": [more]}, tmp_path / "more.pt")
    less = {name: t for name, t in state(probes[0]).items() if not name.endswith("linear.bias")}
    torch.save({"classifiers": [less]}, tmp_path / "less.pt")
    odd = {n: t[:-1] if ".kv.bias" in n else t for n, t in state(probes[0]).items()}
    torch.save({"classifiers": [odd]}, tmp_path / "odd.pt")
    (tmp_path / "cut.pt").write_bytes(several.read_bytes()[:-300])
    for name, settings, complaint in (
        ("several.pt", Settings(), "has the classifiers 0, 1; say which with --branch=NUMBER"),
        ("several.pt", Settings("2"), "has the classifiers 0, 1 and no 2"),
        ("several.pt", Settings("0", {"probe.heads": 5}), "probe.heads=5: it must divide"),
        ("e.pt", Settings(), "no attentive probe"),
        ("more.pt", Settings(), "1 tensor is unknown .*verb_classifier"),
        ("less.pt", Settings(), "1 tensor is missing .*linear.bias"),
        ("odd.pt", Settings(), "kv.bias of shape .63,. is not 2 in one"),
        ("cut.pt", Settings(), "is truncated or damaged"),
    ):
        with pytest.raises(UserError, match=complaint):
            convert.convert(
                "v_jepa_2_probe", tmp_path / name, tmp_path / "converted", settings=settings
            )
        assert not list(tmp_path.glob("converted*"))
