import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import draw, run

from jepa.errors import UserError
from jepa.models.mask_predictor import MaskPredictor
from jepa.nn.rotary import grid_positions

PLACES = grid_positions((2, 3, 3))
CONTEXT = jnp.array([[0, 3, 4, 11, 17], [2, 5, 9, 10, 16]])
TARGETS = jnp.array([[1, 2, 12], [0, 15, 17]])
SEEN = jax.random.normal(jax.random.key(0), (2, 5, 10))
MODELS = {
    "rotary": MaskPredictor(features=10, width=24, depth=2, heads=2, mask_tokens=2),
    "absolute": MaskPredictor(
        features=10, width=24, depth=2, heads=2, rope="none", positions="sincos_uniform"
    ),
    "2.1": MaskPredictor(
        features=40, width=24, depth=2, heads=2, embed_hidden=16, predicts_context=True
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_tokens_does_not_matter_and_their_places_do(name):
    model = MODELS[name]
    variables = draw(model, SEEN, CONTEXT, TARGETS, PLACES)
    predicted, context = run(model, variables, SEEN, CONTEXT, TARGETS, PLACES)
    assert predicted.shape == (2, 3, model.features)
    order = jnp.array([4, 0, 2, 3, 1])
    other, _ = run(model, variables, SEEN[:, order], CONTEXT[:, order], TARGETS[:, ::-1], PLACES)
    np.testing.assert_allclose(other[:, ::-1], predicted, rtol=1e-4, atol=1e-5)
    moved, _ = run(
        model, variables, SEEN, CONTEXT, TARGETS + jnp.array([[1, 0, 0], [0, 1, 0]]), PLACES
    )
    assert np.abs(moved[0, 0] - predicted[0, 0]).max() > 1e-3
    assert (context is None) == (name != "2.1")
    if context is not None:
        assert context.shape == (2, 5, model.features)


def test_a_target_is_predicted_from_the_context_and_the_other_targets_places():
    model = MODELS["rotary"]
    variables = draw(model, SEEN, CONTEXT, TARGETS, PLACES)
    gradient = jax.grad(
        lambda seen: model.apply(variables, seen, CONTEXT, TARGETS, PLACES)[0][0, 0].sum()
    )(SEEN)
    assert np.abs(gradient[0]).min(axis=-1).min() > 0
    assert not np.abs(gradient[1]).any()


def test_each_kind_of_mask_has_its_token():
    model = MODELS["rotary"]
    variables = draw(model, SEEN, CONTEXT, TARGETS, PLACES)

    def predict(token):
        return model.apply(variables, SEEN, CONTEXT, TARGETS, PLACES, mask_token=token)[0]

    assert np.abs(predict(0) - predict(1)).max() > 1e-3
    with pytest.raises(UserError, match="mask token 2 is asked of 2"):
        predict(2)


def test_the_published_size():
    """V-JEPA 2's predictor beside its ViT-L: 22 M parameters (paper, section 2.1)."""
    model = MaskPredictor(features=1024, mask_tokens=10)
    ids = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 2, 1024)), ids, ids, jnp.zeros((3, 2)))
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 21.5e6 < count < 22.5e6
