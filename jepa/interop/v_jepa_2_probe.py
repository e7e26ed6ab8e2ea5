"""The attentive probes of V-JEPA 2 as Meta publishes them (`ssv2-vitl-16x2x3.pt` and its like).

Such a file is a checkpoint of `evals/video_classification_frozen`: a list `classifiers`, of which
training has as many as settings it tries and a released file the best, and what the optimizers
keep. It says neither heads (16 in all the published settings, whatever the encoder's) nor epsilon
(torch's default, 1e-5; the encoder's is 1e-6). Keys and values are one matrix there; they are read,
and leave again, as two of half the rows.

Parameters of ours: `probe` (`models.attentive_probe.AttentiveProbe`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop import meta
from jepa.interop.fields import Config
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan, Settings
from jepa.interop.sections import section
from jepa.interop.tensors import Tensors, open_tensors

_TYPE, PART = "v_jepa_2_probe", "probe"
_HEADS, _EPS = 16, 1e-5
_PREFIX = "classifiers.0.module."
_BEGINS = re.compile(r"((?:classifiers\.(\d+)\.)?(?:module\.)?)pooler\.query_tokens")
_IGNORED = (r"opt\..*", r"scaler\..*")


def _open(path: str | Path) -> Tensors:
    """Opens a file, with keys and values of the cross-attention as tensors of their own."""
    tensors = open_tensors(path)
    for name in list(tensors):
        if ".xattn.kv." in name:
            halves = [name.replace(".xattn.kv.", f".xattn.{half}.") for half in ("k", "v")]
            tensors = tensors.split(name, halves)
    return tensors


def _plan(config: Mapping[str, Any]) -> Plan:
    Config(config, _TYPE, {})
    return _made(config, _PREFIX, ())


def _infer(tensors: Tensors, settings: Settings) -> Plan:
    number, prefix = _chosen(tensors, settings.branch)
    pooler = f"{prefix}pooler."
    cross = f"{pooler}cross_attention_block"
    queries, width = meta.shape(tensors, f"{pooler}query_tokens", 3)[1:]
    if queries != 1:
        raise UserError(f"{tensors.path} has {queries} queries; V-JEPA 2's probes have one")
    hidden = meta.shape(tensors, f"{cross}.mlp.fc1.weight", 2)[0]
    fields = {
        "classes": meta.shape(tensors, f"{prefix}linear.weight", 2)[0],
        "depth": meta.depth(tensors, f"{pooler}blocks") + 1,
        "heads": _HEADS,
        "mlp_ratio": hidden / width,
        "eps": _EPS,
    }
    config = settings.apply({"model_type": _TYPE, "width": width, "probe": fields})
    others = () if number is None else (rf"classifiers\.(?!{number}\.)\d+\..*",)
    return _made(config, prefix, (*_IGNORED, *others))


def _chosen(tensors: Tensors, branch: str | None) -> tuple[str | None, str]:
    """Returns the number of the classifier to take, and what the names of its tensors begin with.

    Raises:
      UserError: there is none, not that one, or nobody says which of several.
    """
    found = {m[2]: m[1] for m in map(_BEGINS.fullmatch, tensors) if m}
    if not found:
        raise UserError(
            f"{tensors.path} has no pooler.query_tokens, so it is no attentive probe of V-JEPA 2"
        )
    if branch is None and len(found) == 1:
        return next(iter(found.items()))
    if branch not in found:
        said = "" if branch is None else f" and no {branch}"
        numbers = ", ".join(str(number) for number in found)
        raise UserError(
            f"{tensors.path} has the classifiers {numbers}{said}; say which with --branch=NUMBER"
        )
    return branch, found[branch]


def _made(config: Mapping[str, Any], prefix: str, ignored: tuple[str, ...]) -> Plan:
    fields = dict(section(config, "probe", ("classes", "depth", "heads", "mlp_ratio")))
    width, heads = Config(config, _TYPE, {}).number("width"), fields["heads"]
    if width % heads:
        raise UserError(f"--set probe.heads={heads}: it must divide the width, {width}")
    pooler = f"{prefix}pooler."
    cross = f"{pooler}cross_attention_block"
    hidden, size = round(width * fields["mlp_ratio"]), width // heads
    leaves: dict[str, Leaf] = {
        "query": parts.leaf(f"{pooler}query_tokens", (1, 1, width), (1, width)),
        **parts.under("norm1", parts.norm(f"{cross}.norm1", width)),
        **parts.under("norm2", parts.norm(f"{cross}.norm2", width)),
        **parts.under("mlp/in", parts.linear(f"{cross}.mlp.fc1", width, hidden)),
        **parts.under("mlp/out", parts.linear(f"{cross}.mlp.fc2", hidden, width)),
        **parts.under("head", parts.linear(f"{prefix}linear", width, fields["classes"])),
    }
    if fields["depth"] > 1:
        leaves |= meta.blocks(f"{pooler}blocks", fields["depth"] - 1, width, heads, hidden)
    for ours, theirs in (("query", "q"), ("keys", "k"), ("values", "v")):
        name, view = f"{cross}.xattn.{theirs}", (heads, size)
        leaves[f"cross/{ours}/kernel"] = parts.leaf(
            f"{name}.weight", (width, width), (*view, width), (2, 0, 1)
        )
        leaves[f"cross/{ours}/bias"] = parts.leaf(f"{name}.bias", (width,), view)
    return Plan(Layout(parts.under(PART, leaves), ignored), {PART: fields}, config)


MODEL = Model(
    _TYPE, "V-JEPA 2's attentive probes: classifiers alone (.pt)", _plan, _infer, open=_open
)
