"""The mixture of losses: every term and every option reaches its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.errors import UserError
from jepa.losses.infonce import info_nce
from jepa.losses.sigmoid import sigmoid
from jepa.losses.sigreg import sigreg, slice_key
from jepa.methods.paired_loss import TERMS, PairedLoss, default_loss

HASH = jnp.array([3, 1, 3, 4, 5, 6, 3, 1])


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
        {"equal_targets": "positives", "label_smoothing": 0.1, "transport": "ring"},
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
    ],
)
def test_mistakes_are_named(values, words):
    with pytest.raises(UserError, match=words):
        mixture(**values).check()
