"""V-JEPA 2.1 as Meta publishes it (`.pt`): encoder and predictor.

What a checkpoint does not say is its rotary positions, which are true rotations, on a grid of
16 x 16 patches (18 x 18 at patches of 14 pixels) to which others are stretched. The predictor's
places are stretched in the same way where the authors train, and are not in the models that they
publish for use; here it gets them from its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa.errors import UserError
from jepa.interop import layout as parts
from jepa.interop import meta
from jepa.interop.fields import Config, tuples
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan, Settings
from jepa.interop.sections import section
from jepa.interop.tensors import Tensors

_TYPE = "v_jepa_2_1"
# Layers whose tokens are normalised for supervision, counted from one, by depth.
_TAPS: Mapping[int, tuple[int, ...]] = {
    12: (3, 6, 9, 12),
    24: (6, 12, 18, 24),
    40: (10, 20, 30, 40),
    48: (12, 24, 38, 48),
}
_PREDICTOR_HEADS = 12
_GRIDS = {16: 16, 14: 18}


def _plan(config: Mapping[str, Any]) -> Plan:
    Config(config, _TYPE, {})
    return _made(config, f"{meta.ENCODERS[0]}.", f"{meta.PREDICTOR}.", ())


def _made(
    config: Mapping[str, Any], encoder: str, predictor: str | None, ignored: tuple[str, ...]
) -> Plan:
    fields = {"encoder": tuples(section(config, "encoder", (*meta.ENCODER_FIELDS, "taps")))}
    taps, depth = fields["encoder"]["taps"], fields["encoder"]["depth"]
    if taps[-1] != depth:
        raise UserError(f"encoder.taps is {list(taps)}; its last must be the last layer, {depth}")
    leaves: dict[str, Leaf] = parts.under("encoder", meta.encoder(fields["encoder"], encoder))
    if "predictor" in config and predictor is not None:
        fields["predictor"] = tuples(section(config, "predictor", meta.PREDICTOR_FIELDS))
        deep = bool(fields["predictor"].get("embed_hidden"))
        levels = len(taps) if deep else 1
        inputs = levels * fields["encoder"]["width"]
        of_part = meta.predictor(fields["predictor"], predictor, inputs)
        leaves.update(parts.under("predictor", of_part))
    return Plan(Layout(leaves, ignored), fields, config)


def _infer(tensors: Tensors, settings: Settings) -> Plan:
    found = meta.Branches(tensors, settings.branch)
    encoder = meta.encoder_fields(tensors, found.encoder)
    levels = meta.depth(tensors, f"{found.encoder}norms_block")
    if not levels:
        raise UserError(
            f"{tensors.path} has no {found.encoder}norms_block, so it is of V-JEPA 2 or older"
        )
    taps = _TAPS.get(encoder["depth"])
    encoder |= {
        "rope": "rotation",
        "positions": "none",
        "table_grid": None,
        "gelu": "exact",
        "pretrain_grid": _GRIDS.get(encoder["patch"]),
        "taps": None if taps is None else list(taps),
        "image_tokenizer": True,
    }
    config: dict[str, Any] = {"model_type": _TYPE, "encoder": encoder}
    if found.predictor is not None:
        predictor = meta.predictor_fields(tensors, found.predictor, _PREDICTOR_HEADS)
        context = f"{found.predictor}predictor_proj_context.weight" in tensors
        predictor |= {"rope": "rotation", "positions": "none", "gelu": "exact"}
        predictor["predicts_context"] = context
        predictor["modalities"] = f"{found.predictor}img_mod_embed" in tensors
        config["predictor"] = predictor
    needed = ["encoder.heads", "encoder.taps"]
    config = meta.settle(config, settings, needed)
    if len(config["encoder"]["taps"]) != levels:
        raise UserError(
            f"encoder.taps is {config['encoder']['taps']}, and {tensors.path} has norms for "
            f"{levels} layers"
        )
    return _made(config, found.encoder, found.predictor, found.ignored)


MODEL = Model(_TYPE, "V-JEPA 2.1: encoder and predictor (B, L, g, G; .pt)", _plan, _infer)
