"""V-JEPA 2 as Hugging Face publishes it: encoder and predictor, and the video classifier.

Parameters of ours: `encoder` (`models.vit.VideoTransformer`), `predictor`
(`models.mask_predictor.MaskPredictor`) and, of the classifier, `probe`
(`models.attentive_probe.AttentiveProbe`).

Rotary positions are the released form ("tiled"). `transformers` numbers rows and columns by the
config's `crop_size`, whatever the input's; here, as in Meta's own code, by the input.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop import meta
from jepa.interop.fields import Config
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan, Settings
from jepa.interop.tensors import Tensors

_TYPE = "vjepa2"
# How clips are made ready, which goes with the weights.
_BESIDE = ("video_preprocessor_config.json", "preprocessor_config.json")
# The type's defaults, which a config.json may leave out.
_DEFAULTS: Mapping[str, Any] = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "in_chans": 3,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "num_pooler_layers": 3,
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_zero_init_mask_tokens": True,
    "pred_mlp_ratio": 4.0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
}
_POOLER_RATIO = 4  # whatever mlp_ratio is


def _config(content: Mapping[str, Any]) -> Config:
    config = Config(content, _TYPE, _DEFAULTS)
    if config["crop_size"] is not None:
        config.number("crop_size")
    config.must("in_chans", 3)
    config.must("qkv_bias", True)
    config.must("layer_norm_eps", 1e-6)
    for heads, width in (
        ("num_attention_heads", "hidden_size"),
        ("pred_num_attention_heads", "pred_hidden_size"),
    ):
        if config.number(width) % config.number(heads):
            raise UserError(
                f"config.json: {heads} is {config[heads]}, which does not divide {width}="
                f"{config[width]}"
            )
    return config


def _blocks(prefix: str, depth: int, width: int, heads: int, hidden: int) -> dict[str, Leaf]:
    def layer(i: int) -> dict[str, Leaf]:
        name = f"{prefix}.{i}"
        names = tuple(f"{name}.attention.{part}" for part in ("query", "key", "value", "proj"))
        return {
            **parts.under("norm1", parts.norm(f"{name}.norm1", width)),
            **parts.under("attention", parts.attention(names, width, heads)),
            **parts.under("norm2", parts.norm(f"{name}.norm2", width)),
            **parts.under("mlp/in", parts.linear(f"{name}.mlp.fc1", width, hidden)),
            **parts.under("mlp/out", parts.linear(f"{name}.mlp.fc2", hidden, width)),
        }

    return parts.stacked("blocks", depth, layer)


def _hidden(width: int, ratio: float) -> int:
    # Cut off, not rounded, as there.
    return int(width * ratio)


def _encoder(config: Config, prefix: str) -> tuple[dict[str, Any], dict[str, Leaf]]:
    width, depth = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, patch = config.number("num_attention_heads"), config.number("patch_size")
    tubelet = config.number("tubelet_size")
    hidden = _hidden(width, config.ratio("mlp_ratio"))
    fields = {
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": hidden / width,
        "patch": patch,
        "tubelet": tubelet,
        "rope": "tiled",
        "positions": "none",
        "table_grid": None,
        "pretrain_grid": None,
        "gelu": config.gelu("hidden_act"),
    }
    embed = parts.patches(f"{prefix}.embeddings.patch_embeddings.proj", width, patch, tubelet)
    leaves = {
        **parts.under("patches", embed),
        **_blocks(f"{prefix}.layer", depth, width, heads, hidden),
        **parts.under("norm", parts.norm(f"{prefix}.layernorm", width)),
    }
    return fields, leaves


def _predictor(config: Config, prefix: str) -> tuple[dict[str, Any], dict[str, Leaf]]:
    features, width = config.number("hidden_size"), config.number("pred_hidden_size")
    depth, heads = (
        config.number("pred_num_hidden_layers"),
        config.number("pred_num_attention_heads"),
    )
    tokens = config.number("pred_num_mask_tokens")
    hidden = _hidden(width, config.ratio("pred_mlp_ratio"))
    fields = {
        "features": features,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": hidden / width,
        "rope": "tiled",
        "positions": "none",
        "gelu": config.gelu("hidden_act"),
        "mask_tokens": tokens,
        "mask_token_init": "zeros" if config["pred_zero_init_mask_tokens"] else "normal",
    }
    embeddings = f"{prefix}.embeddings"
    mask_tokens = parts.leaf(f"{embeddings}.mask_tokens", (tokens, 1, 1, width), (tokens, width))
    leaves = {
        **parts.under("embed", parts.linear(f"{embeddings}.predictor_embeddings", features, width)),
        "mask_tokens": mask_tokens,
        **_blocks(f"{prefix}.layer", depth, width, heads, hidden),
        **parts.under("norm", parts.norm(f"{prefix}.layernorm", width)),
        **parts.under("out", parts.linear(f"{prefix}.proj", width, features)),
    }
    return fields, leaves


def _probe(config: Config, prefix: str) -> tuple[dict[str, Any], dict[str, Leaf]]:
    width, heads = config.number("hidden_size"), config.number("num_attention_heads")
    depth, hidden = config.number("num_pooler_layers"), _POOLER_RATIO * width
    # A file that names no classes is of the type's two.
    classes = len(config["id2label"])

    def mlp(name: str) -> dict[str, Leaf]:
        return {
            **parts.under("mlp/in", parts.linear(f"{name}.mlp.fc1", width, hidden)),
            **parts.under("mlp/out", parts.linear(f"{name}.mlp.fc2", hidden, width)),
        }

    def layer(i: int) -> dict[str, Leaf]:
        name = f"{prefix}.self_attention_layers.{i}"
        of_layer = ("q_proj", "k_proj", "v_proj", "out_proj")
        names = tuple(f"{name}.self_attn.{part}" for part in of_layer)
        return {
            **parts.under("norm1", parts.norm(f"{name}.layer_norm1", width)),
            **parts.under("attention", parts.attention(names, width, heads)),
            **parts.under("norm2", parts.norm(f"{name}.layer_norm2", width)),
            **mlp(name),
        }

    cross = f"{prefix}.cross_attention_layer"
    leaves = {
        "query": parts.leaf(f"{prefix}.query_tokens", (1, 1, width), (1, width)),
        **parts.stacked("blocks", depth, layer),
        **parts.under("norm1", parts.norm(f"{cross}.layer_norm1", width)),
        **parts.under("norm2", parts.norm(f"{cross}.layer_norm2", width)),
        **mlp(cross),
        **parts.under("head", parts.linear("classifier", width, classes)),
    }
    for ours, theirs in (("query", "q_proj"), ("keys", "k_proj"), ("values", "v_proj")):
        name, size = f"{cross}.cross_attn.{theirs}", width // heads
        view = (heads, size)
        leaves[f"cross/{ours}/kernel"] = parts.leaf(
            f"{name}.weight", (width, width), (*view, width), (2, 0, 1)
        )
        leaves[f"cross/{ours}/bias"] = parts.leaf(f"{name}.bias", (width,), view)
    fields = {"classes": classes, "depth": depth + 1, "heads": heads}
    return fields, leaves


_Part = Callable[[Config, str], tuple[dict[str, Any], dict[str, Leaf]]]


def _infer(tensors: Tensors, settings: Settings) -> Plan:
    """The plan of Meta's own file (`.pt`), whose parameters are the same by other names."""
    found = meta.Branches(tensors, settings.branch)
    encoder = meta.encoder_fields(tensors, found.encoder)
    if found.predictor is None:
        raise UserError(f"{tensors.path} has no predictor, which V-JEPA 2 has")
    predictor = meta.predictor_fields(
        tensors, found.predictor, _DEFAULTS["pred_num_attention_heads"]
    )
    content = {
        "architectures": ["VJEPA2Model"],
        "model_type": _TYPE,
        # Meta's 256 and 384 have the same tensors, so the user has to say which it is.
        "crop_size": None,
        "frames_per_clip": _DEFAULTS["frames_per_clip"],
        **_sizes(encoder, predictor),
    }
    content = meta.settle(content, settings, ["num_attention_heads"])
    plan = _plan(content, _MODEL_PARTS)
    of_encoder, of_predictor = plan.fields["encoder"], plan.fields["predictor"]
    leaves = {
        **parts.under("encoder", meta.encoder(of_encoder, found.encoder)),
        **parts.under(
            "predictor", meta.predictor(of_predictor, found.predictor, of_encoder["width"])
        ),
    }
    # Tables that training drags along and rotary positions make no use of.
    unused = [rf"{re.escape(found.encoder)}pos_embed"]
    unused.append(rf"{re.escape(found.predictor)}predictor_pos_embed")
    return dataclasses.replace(plan, layout=Layout(leaves, (*found.ignored, *unused)))


_MODEL_PARTS: Mapping[str, tuple[str, _Part]] = {
    "encoder": ("encoder", _encoder),
    "predictor": ("predictor", _predictor),
}


def _plan(content: Mapping[str, Any], made: Mapping[str, tuple[str, _Part]]) -> Plan:
    config = _config(content)
    fields, leaves = {}, {}
    for name, (prefix, part) in made.items():
        fields[name], of_part = part(config, prefix)
        leaves.update(parts.under(name, of_part))
    return Plan(Layout(leaves), fields, content)


def _plan_model(content: Mapping[str, Any]) -> Plan:
    if content.get("crop_size", _DEFAULTS["crop_size"]) is None:
        raise UserError(
            "these weights do not say crop_size, the side of their frames in pixels, by which "
            "transformers counts positions; say it with --set crop_size=NUMBER (256 or 384 for the "
            "released ones)"
        )
    return _plan(content, _MODEL_PARTS)


def _plan_classifier(content: Mapping[str, Any]) -> Plan:
    made = {
        "encoder": ("vjepa2.encoder", _encoder),
        "predictor": ("vjepa2.predictor", _predictor),
        "probe": ("pooler", _probe),
    }
    return _plan(content, made)


def _sizes(encoder: Mapping[str, Any], predictor: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of both networks as `config.json` names them."""
    return {
        "hidden_size": encoder["width"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["heads"],
        "mlp_ratio": encoder["mlp_ratio"],
        "patch_size": encoder["patch"],
        "tubelet_size": encoder["tubelet"],
        "pred_hidden_size": predictor["width"],
        "pred_num_hidden_layers": predictor["depth"],
        "pred_num_attention_heads": predictor["heads"],
        "pred_mlp_ratio": predictor["mlp_ratio"],
        "pred_num_mask_tokens": predictor["mask_tokens"],
    }


def _describe(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a run's networks."""
    encoder, predictor = fields["encoder"], fields["predictor"]
    for name, of in (("encoder", encoder), ("predictor", predictor)):
        needed = {"rope": "tiled", "positions": "none", "gelu": encoder["gelu"]}
        for key, value in needed.items():
            if of[key] != value:
                raise UserError(
                    f"the {name} has {key}={of[key]!r}, and transformers computes V-JEPA 2 with "
                    f"{value!r} only; train with it, or keep the weights here"
                )
    if encoder.get("pretrain_grid") or encoder.get("taps"):
        raise UserError("the encoder is that of V-JEPA 2.1, which transformers does not have")
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": _TYPE,
        # What positions are counted by there.
        "crop_size": None,
        "frames_per_clip": _DEFAULTS["frames_per_clip"],
        "hidden_act": {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}[encoder["gelu"]],
        **_sizes(encoder, predictor),
        "pred_zero_init_mask_tokens": predictor["mask_token_init"] == "zeros",
    }


MODEL = Model(
    "v_jepa_2",
    "V-JEPA 2: encoder and predictor (L, H, g; 256 and 384; also .pt)",
    _plan_model,
    _infer,
    _describe,
    beside=_BESIDE,
)
CLASSIFIER = Model(
    "v_jepa_2_classifier",
    "V-JEPA 2 with an attentive probe: video classification",
    _plan_classifier,
    beside=_BESIDE,
)
