"""Colours of clips moved on the device, as an option of the masked video methods."""

import jax
import numpy as np
import pytest
from masked_cases import QUICK, batch, draw, program, tiny

from jepa import methods
from jepa.errors import UserError
from jepa.methods import i_jepa, v_jepa, v_jepa_2, v_jepa_2_1
from jepa.nn.frames import normalise, to_rgb
from jepa.nn.views import Colours, colour_clips


@pytest.mark.parametrize("module", [v_jepa, v_jepa_2, v_jepa_2_1])
def test_it_is_off_unless_asked_for(module):
    colours = Colours(**module.default_model().augment)
    assert not colours.move and not colours.blur
    assert "augment" not in i_jepa.default_model()  # whose point is to do without


def test_off_it_leaves_the_program_as_it_was():
    config = tiny("v_jepa_2")
    method, data = methods.from_config(config), batch(config)
    params = jax.eval_shape(method.init, jax.random.key(0), data)[0]
    text = jax.jit(method.represent).lower(params, params, {}, data, jax.random.key(0)).as_text()
    assert "threefry" not in text and "rng" not in text


def test_context_and_targets_see_the_same_clip_and_another_one_at_another_step():
    config = tiny("v_jepa_2", **{"model.augment.grey": 0.5, "model.augment.jitter": 1.0})
    method, data = methods.from_config(config), batch(config)
    params = draw(method, data)
    represent = jax.jit(method.represent, compiler_options=QUICK)
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(2)]
    first, again, other = (
        represent(params, params, {}, data, key)[0].tokens for key in (keys[0], keys[0], keys[1])
    )
    for name, tokens in first.items():
        np.testing.assert_array_equal(tokens, again[name])
        assert np.abs(np.asarray(tokens) - other[name]).max() > 1e-3
    # The same as clips that were coloured before, by a method that colours nothing.
    plain = methods.from_config(tiny("v_jepa_2"))
    clips = colour_clips(jax.random.fold_in(keys[0], 0), to_rgb(data["video"]), method.colours)
    plain.augmented = lambda rng, number, stream: normalise(clips)
    wanted, _ = jax.jit(plain.represent, compiler_options=QUICK)(params, params, {}, data, keys[0])
    for name, tokens in first.items():
        np.testing.assert_allclose(tokens, wanted.tokens[name], atol=2e-4)


@pytest.mark.slow
def test_draws_do_not_depend_on_the_mesh():
    options = (("model.augment.jitter", 1.0), ("model.augment.blur", 0.5))
    cut = (("mesh.fsdp", 2), ("mesh.tensor", 2))
    with jax.enable_x64(True):
        _, reference = program("v_jepa_2", 1, options).run(3)
        _, history = program("v_jepa_2", 8, (*options, *cut)).run(3)
    np.testing.assert_allclose(history, reference, rtol=1e-9)


def test_a_number_out_of_range_is_named():
    config = tiny("v_jepa", **{"model.augment.blur": 1.5})
    with pytest.raises(UserError, match=r"config\.model\.augment\.blur is 1.5"):
        methods.from_config(config).check(config)
