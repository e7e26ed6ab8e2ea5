"""Networks that cannot be are refused in one sentence, before anything is traced."""

import jax
import numpy as np
import pytest
import test_lejepa_method as lejepa
from masked_cases import tiny

from jepa import methods
from jepa.errors import UserError
from jepa.methods.masked_batch import parts
from jepa.models.mask_predictor import MaskPredictor
from jepa.nn.rotary import grid_positions
from jepa.training import config as configs

ENCODER, PREDICTOR = "model.encoder.", "model.predictor."


def check(name, key, value):
    config = (lejepa.tiny if name == "lejepa" else lambda **o: tiny(name, **o))(**{key: value})
    configs.check_run(config, methods.from_config(config), 8)


@pytest.mark.parametrize("name", ["i_jepa", "v_jepa", "v_jepa_2", "lejepa"])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rope", "rotaton", "rope is 'rotaton'; use one of rotation, tiled, none"),
        ("positions", "sine", "positions is 'sine'; use one of none, sincos, "),
        ("width", 0, "width is 0; give a whole number"),
        ("heads", 0, "heads is 0; give a whole number"),
        ("heads", 5, "heads is 5; use a number that divides config.model.encoder.width="),
        ("depth", 0, "depth is 0; give a whole number"),
        ("patch", 0, "patch is 0; give a whole number"),
        ("mlp_ratio", -1.0, "mlp_ratio is -1.0; give a number above 0"),
        ("mlp_ratio", float("nan"), "mlp_ratio is nan"),
    ],
)
def test_an_encoder_that_cannot_be(name, key, value, words):
    with pytest.raises(UserError, match=f"config.model.encoder.{words}"):
        check(name, ENCODER + key, value)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        # Any word but "none" used to be a rotation.
        ("i_jepa", PREDICTOR + "rope", "rotaton", "predictor.rope is 'rotaton'; use one of"),
        ("v_jepa", PREDICTOR + "rope", "rotaton", "predictor.rope is 'rotaton'; use one of"),
        ("v_jepa", PREDICTOR + "positions", "sine", "predictor.positions is 'sine'; use one of"),
        ("v_jepa", PREDICTOR + "mask_token_init", "ones", "init is 'ones'; use one of zeros, norm"),
        ("v_jepa", PREDICTOR + "mask_tokens", 0, "mask_tokens is 0"),
        ("v_jepa", PREDICTOR + "heads", 0, "predictor.heads is 0"),
        ("v_jepa", PREDICTOR + "heads", 5, "predictor.width=24"),
        ("i_jepa", ENCODER + "width", 22, "width is 22; .* which .*positions='sincos_2d' fill"),
        ("lejepa", ENCODER + "width", 22, "width is 22; .* which .*positions='sincos_2d' fill"),
        ("v_jepa_2", ENCODER + "width", 22, "heads is 2; that leaves 11 of .*encoder.width=22"),
        ("v_jepa_2", ENCODER + "heads", 6, "heads is 6; that leaves 4 of"),
        ("v_jepa_2", ENCODER + "pretrain_grid", 0, "pretrain_grid is 0"),
        ("v_jepa_2", "model.augment.blur_sigma", (2.0,), r"blur_sigma is \(2.0,\); give \(low"),
        ("v_jepa_2_1", "loss.ramp", ("a", "b"), "loss.ramp is"),
        ("v_jepa_2_1", "loss.context_weight", -1.0, "context_weight is -1.0"),
        ("distillation", "model.teacher.heads", 5, "teacher.heads is 5"),
        ("lejepa", "model.projector.features", 0, "projector.features is 0"),
        ("lejepa", "model.projector.hidden", (8, 0), r"projector.hidden is \(8, 0\)"),
        ("lejepa", "model.projector.momentum", 2.0, "projector.momentum is 2.0"),
        ("lejepa", "model.global_views.scale", (0.5,), r"global_views.scale is \(0.5,\); give"),
        ("lejepa", "loss.vicreg.variance", -1.0, "vicreg.variance is -1.0"),
    ],
)
def test_what_else_cannot_be(name, key, value, words):
    with pytest.raises(UserError, match=words):
        check(name, key, value)


@pytest.mark.parametrize("wrong", ["rope", "positions", "mask_token_init"])
def test_a_predictor_by_itself_knows_no_other_words_either(wrong):
    model = MaskPredictor(features=8, width=24, depth=1, heads=2, **{wrong: "other"})
    seen, ids = np.zeros((1, 2, 8), np.float32), np.zeros((1, 2), np.int32)
    with pytest.raises(UserError, match=f"{wrong} is 'other'; it can be one of"):
        model.init(jax.random.key(0), seen, ids, ids, grid_positions((1, 2, 2)))


def test_a_kind_of_mask_may_be_named_context():
    ids = np.zeros((2, 3), np.int32)
    batch = {"video": None, "masks": {"context": {"context": ids, "target": ids}}}
    ((_, (mask,)),) = parts(batch)
    assert mask.name == "context" and mask.blocks == (1, 3)
