"""The mixture of losses: every term and every option reaches its loss."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from jepa.errors import UserError
from jepa.losses.barlow_twins import barlow_twins
from jepa.losses.infonce import info_nce
from jepa.losses.sigmoid import sigmoid
from jepa.losses.sigreg import sigreg, slice_key
from jepa.losses.vicreg import vicreg
from jepa.methods.paired_loss import TERMS, PairedLoss, default_loss

HASH = jnp.array([3, 1, 3, 4, 5, 6, 3, 1])
NAN = float("nan")
MOMENTS = {"sigreg.statistic": "moments"}


def embeddings():
    rng = np.random.default_rng(0)
    p = rng.standard_normal((8, 6)).astype("float32")
    return jnp.asarray(p), jnp.asarray(p + rng.standard_normal((8, 6)).astype("float32"))


def mixture(**values):
    config = default_loss()
    config.update_from_flattened_dict({"info_nce": 0.0, "sigreg.slices": 16, **values})
    return PairedLoss(config, seed=7)


def evaluate(loss, step=3):
    p, t = embeddings()
    learnt = loss.learnt(jnp.float32)
    return jax.jit(lambda p, t: loss(p, t, learnt=learnt, target_hash=HASH, step=step))(p, t)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_weighed_and_logged(term):
    total, metrics = evaluate(mixture(**{term: 0.5}))
    assert total != 0 and np.isfinite(total)
    np.testing.assert_allclose(total, 0.5 * metrics[term], rtol=1e-6)


def test_options_reach_the_contrastive_losses():
    p, t = embeddings()
    for options in (
        {"equal_targets": "positives", "label_smoothing": 0.1, "tile": 3},
        {"equal_targets": "negatives", "hardness": 0.5},
    ):
        total, metrics = evaluate(mixture(info_nce=1.0, temperature=0.2, **options))
        wanted, _ = info_nce(p, t, inverse_temperature=5.0, target_hash=HASH, **options)
        np.testing.assert_allclose(total, wanted, rtol=1e-5)
        np.testing.assert_allclose(metrics["temperature"], 0.2, rtol=1e-6)
    loss = mixture(sigmoid=1.0, temperature=0.1, sigmoid_bias=-3.0)
    wanted, _ = sigmoid(p, t, inverse_temperature=10.0, bias=-3.0, target_hash=HASH)
    np.testing.assert_allclose(evaluate(loss)[0], wanted, rtol=1e-5)
    assert [name for name, _ in loss.partition_table()] == [
        "log_inverse_temperature",
        "sigmoid_bias",
    ]


def test_options_reach_the_baselines():
    p, t = embeddings()
    weights = {"invariance": 2.0, "variance": 0.0, "covariance": 3.0}
    values = {f"vicreg_weights.{name}": x for name, x in weights.items()}
    got, _ = evaluate(mixture(vicreg=1.0, **values))
    np.testing.assert_allclose(got, vicreg(p, t, **weights)[0], rtol=1e-5)
    got, _ = evaluate(mixture(barlow_twins=1.0, barlow_twins_redundancy=0.5))
    np.testing.assert_allclose(got, barlow_twins(p, t, redundancy=0.5)[0], rtol=1e-5)


def test_options_of_sigreg_by_flags(monkeypatch):
    given = ("sigreg_target=1.0", "info_nce=0.0", "sigreg.slices=16", "sigreg.scale_by_n=False")
    given += ("sigreg.chunk=5", "sigreg.t_max=4")
    monkeypatch.setattr(sys, "argv", ["program", *(f"--config.loss.{x}" for x in given)])
    values = flags.FlagValues()
    config = ConfigDict({"loss": default_loss()})
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(sys.argv)
    loss = PairedLoss(values.config.loss, seed=7)
    loss.check()
    assert loss.config.sigreg.chunk == 5 and loss.config.sigreg.t_max == 4.0
    options = {"slices": 16, "chunk": 5, "t_max": 4.0, "scale_by_n": False}
    wanted = sigreg(embeddings()[1], slice_key(7, 3, 1), **options)
    np.testing.assert_allclose(evaluate(loss)[0], wanted, rtol=1e-5)


def test_a_fixed_temperature_is_used_as_it_is():
    p, t = embeddings()
    loss = mixture(info_nce=1.0, temperature=0.005, learnable_temperature=False)
    loss.check()
    wanted, _ = info_nce(p, t, inverse_temperature=200.0, target_hash=HASH)
    np.testing.assert_allclose(evaluate(loss)[0], wanted, rtol=1e-4)


def test_slices_change_with_the_step_and_the_side():
    loss = mixture(sigreg_prediction=1.0, sigreg_target=1.0)
    _, metrics = evaluate(loss)
    p, t = embeddings()
    for index, (name, x) in enumerate((("prediction", p), ("target", t))):
        wanted = sigreg(x, slice_key(7, 3, index), slices=16)
        np.testing.assert_allclose(metrics[f"sigreg_{name}"], wanted, rtol=1e-5)
    assert evaluate(loss, step=4)[0] != evaluate(loss)[0]


def test_a_temperature_that_is_not_used_is_not_learnt():
    assert mixture(regression=1.0).frozen() == ("log_inverse_temperature",)
    assert mixture(info_nce=1.0).frozen() == mixture(sigmoid=1.0).frozen() == ()
    assert mixture(info_nce=1.0, learnable_temperature=False).frozen()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "no term"),
        ({"info_nce": 1.0, "equal_targets": "mask"}, "equal_targets is 'mask'; use one of"),
        ({"info_nce": 1.0, "transport": "broadcast"}, "transport is 'broadcast'"),
        ({"regression": 1.0, "regression_kind": "l3"}, "regression_kind is 'l3'"),
        ({"sigreg_target": 1.0, "sigreg.form": "half"}, "sigreg.form is 'half'"),
        ({"sigreg_target": 1.0, "sigreg.statistic": "ks"}, "sigreg.statistic is 'ks'"),
        ({"sigreg_target": 1.0, "sigreg.implementation": "cuda"}, "implementation is 'cuda'"),
        ({"info_nce": 1.0, "hardness": 1.0, "label_smoothing": 0.1}, "hardness is 1.0"),
        ({"info_nce": 1.0, "sigmoid": -0.5}, "sigmoid is -0.5; a weight is 0 or more"),
        ({"sigreg_target": NAN}, "sigreg_target is nan; a weight"),
        ({"vicreg": 1.0, "vicreg_weights.variance": -1.0}, "vicreg_weights.variance is -1.0"),
        ({"barlow_twins": 1.0, "barlow_twins_redundancy": -1.0}, "redundancy is -1.0"),
        ({"info_nce": 1.0, "hardness": -1.0}, "hardness is -1.0; give 0"),
        ({"info_nce": 1.0, "hardness": NAN}, "hardness is nan"),
        ({"info_nce": 1.0, "label_smoothing": 1.0}, "label_smoothing is 1.0; give a number from"),
        ({"sigmoid": 1.0, "label_smoothing": 0.1}, "label_smoothing is 0.1 and does nothing"),
        ({"sigmoid": 1.0, "hardness": 0.1}, "hardness is 0.1 and does nothing"),
        ({"info_nce": 1.0, "temperature": 0.0}, "temperature is 0.0; give a number above 0"),
        ({"info_nce": 1.0, "temperature": 0.005}, "temperature is 0.005, whose inverse is above"),
        ({"info_nce": 1.0, "maximum_inverse_temperature": -1.0}, "temperature is -1.0; give"),
        ({"info_nce": 1.0, "tile": 0}, "tile is 0"),
        ({"sigreg_target": 1.0, "sigreg.slices": 0}, "sigreg.slices is 0"),
        ({"sigreg_target": 1.0, "sigreg.knots": 1}, "sigreg.knots is 1; give 2 or more"),
        ({"sigreg_target": 1.0, "sigreg.t_max": 0.0}, "sigreg.t_max is 0.0"),
        ({"sigreg_target": 1.0, "sigreg.chunk": 0}, "sigreg.chunk is 0"),
        ({"sigreg_target": 1.0, **MOMENTS, "sigreg.chunk": 8}, "sigreg.chunk is 8, which"),
        ({"sigreg_target": 1.0, **MOMENTS, "sigreg.implementation": "pallas"}, "is 'pallas'"),
    ],
)
def test_mistakes_are_named(values, words):
    with pytest.raises(UserError, match=f"config.loss.*{words}"):
        mixture(**values).check()


def test_the_defaults_are_no_mistake():
    PairedLoss(default_loss(), seed=0).check()
