"""V-JEPA and I-JEPA as Meta publishes them: encoder and predictor (`.pt`, `.pth.tar`).

Both add a fixed table of positions to their tokens. The table in a checkpoint must be the one that
is computed here; its grid becomes the encoder's `table_grid`, so that other sizes of input get the
table interpolated, as by the authors. The predictor has positions for its own grid only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from jepa.errors import UserError
from jepa.interop import i_jepa_hf, meta, tables
from jepa.interop import layout as parts
from jepa.interop.fields import Config, tuples
from jepa.interop.layout import Layout, Leaf
from jepa.interop.registry import Model, Plan, Settings
from jepa.interop.sections import section
from jepa.interop.tensors import Tensors

_V_JEPA, _I_JEPA = "v_jepa", "i_jepa"
_FORMS = {_V_JEPA: "sincos_uniform", _I_JEPA: i_jepa_hf.POSITIONS}
# The giant models of these papers have fewer heads than V-JEPA 2's.
_HEADS = {**meta.HEADS, 1408: 16, 1664: 16}
# The released V-JEPA models saw 16 frames in tubelets of 2.
_TUBELETS = 8


def _plan(config: Mapping[str, Any]) -> Plan:
    return _made(config, f"{meta.ENCODERS[0]}.", f"{meta.PREDICTOR}.", ())


def _made(
    config: Mapping[str, Any], encoder: str, predictor: str | None, ignored: tuple[str, ...]
) -> Plan:
    kind = config["model_type"]
    flat, form = kind == _I_JEPA, _FORMS[kind]
    needed = (*meta.ENCODER_FIELDS, "positions", "table_grid")
    fields = {"encoder": tuples(section(config, "encoder", needed))}
    grid = fields["encoder"]["table_grid"]
    if grid is None or fields["encoder"]["positions"] != form:
        raise UserError(
            f"encoder.table_grid is {grid} and encoder.positions "
            f"{fields['encoder']['positions']!r}; the model has a grid, with {form!r}"
        )
    derived: dict[str, Callable[[], np.ndarray]] = {
        f"{encoder}pos_embed": tables.maker(grid, fields["encoder"]["width"], form)
    }
    of_encoder = meta.encoder(fields["encoder"], encoder, flat=flat)
    leaves: dict[str, Leaf] = parts.under("encoder", of_encoder)
    if "predictor" in config and predictor is not None:
        said = section(config, "predictor", meta.PREDICTOR_FIELDS)
        of = fields["predictor"] = tuples(said)
        inputs = fields["encoder"]["width"]
        of_predictor = meta.predictor(of, predictor, inputs, single=flat)
        leaves.update(parts.under("predictor", of_predictor))
        derived[f"{predictor}predictor_pos_embed"] = tables.maker(grid, of["width"], form)
    return Plan(Layout(leaves, ignored, derived=derived), fields, config)


def _infer(kind: str, tensors: Tensors, settings: Settings) -> Plan:
    found = meta.Branches(tensors, settings.branch)
    flat = kind == _I_JEPA
    encoder = meta.encoder_fields(tensors, found.encoder, flat=flat, heads=_HEADS)
    encoder |= {
        "rope": "none",
        "positions": _FORMS[kind],
        "pretrain_grid": None,
        "gelu": "exact",
        "table_grid": _grid(tensors, f"{found.encoder}pos_embed", flat),
    }
    config: dict[str, Any] = {"model_type": kind, "encoder": encoder}
    if found.predictor is not None:
        # As many heads as the encoder.
        predictor = meta.predictor_fields(tensors, found.predictor, encoder["heads"])
        predictor |= {"rope": "none", "positions": _FORMS[kind], "gelu": "exact"}
        predictor["mask_token_init"] = "normal" if flat else "zeros"
        config["predictor"] = predictor
    needed = ["encoder.heads", *(["predictor.heads"] if found.predictor else [])]
    config = meta.settle(config, settings, needed)
    return _made(config, found.encoder, found.predictor, found.ignored)


def _grid(tensors: Tensors, name: str, flat: bool) -> list[int]:
    """Returns the grid of a table of positions: of squares, of 8 tubelets where there are any."""
    cells = meta.shape(tensors, name, 3)[1]
    tubelets = 1 if flat else _TUBELETS
    side = math.isqrt(cells // tubelets)
    if tubelets * side * side != cells:
        raise UserError(f"{tensors.path}: {name} has {cells} places, which are no square grid")
    return [tubelets, side, side]


def _model(kind: str, says: str) -> Model:
    def plan(config: Mapping[str, Any]) -> Plan:
        if kind == _I_JEPA and config.get("model_type") == i_jepa_hf.TYPE:
            return i_jepa_hf.plan(config)
        Config(config, kind, {})
        return _plan(config)

    infer = partial(_infer, kind)
    return Model(kind, says, plan, infer, beside=("preprocessor_config.json",))


V_JEPA = _model(_V_JEPA, "V-JEPA: encoder and predictor (L, H; .pt)")
I_JEPA = _model(_I_JEPA, "I-JEPA: encoder, and predictor of .pth.tar (H, g)")
