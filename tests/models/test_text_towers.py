import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import draw, quick, run

from jepa.errors import UserError
from jepa.models.llama import LlamaStack
from jepa.models.minilm import MiniLM
from jepa.models.text import TextTransformer

IDS = jnp.array([[2, 5, 7, 3, 0, 0], [2, 9, 4, 8, 6, 3]])
MASK = IDS != 0

TOWERS = {
    "text": TextTransformer(vocab=12, width=16, depth=2, heads=2, max_length=8),
    "minilm": MiniLM(vocab=12, width=16, depth=2, heads=2, mlp_width=24, max_length=8),
}


@pytest.fixture(scope="module", params=sorted(TOWERS))
def tower(request):
    module = TOWERS[request.param]
    return module, draw(module, IDS, MASK)


def test_pads_have_no_influence(tower):
    module, variables = tower
    got = run(module, variables, IDS, MASK)
    assert got.shape == (2, 16)
    other_pads = jnp.where(MASK, IDS, 11)
    np.testing.assert_allclose(run(module, variables, other_pads, MASK), got, atol=1e-6)
    shorter = run(module, variables, IDS[:1, :4], MASK[:1, :4])
    np.testing.assert_allclose(shorter, got[:1], atol=1e-5)


def test_the_order_of_words_matters(tower):
    module, variables = tower
    swapped = IDS.at[1, 1].set(4).at[1, 2].set(9)
    difference = run(module, variables, swapped, MASK) - run(module, variables, IDS, MASK)
    assert jnp.abs(difference[1]).max() > 1e-3
    np.testing.assert_allclose(difference[0], 0, atol=1e-6)


def test_an_empty_text_is_finite_and_so_is_its_gradient(tower):
    module, variables = tower
    nothing = jnp.zeros_like(MASK)
    gradient = quick(jax.grad(lambda v: module.apply(v, IDS, nothing).sum()))(variables)
    assert np.isfinite(run(module, variables, IDS, nothing)).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_texts_too_long_are_refused(tower):
    module, variables = tower
    ids = jnp.zeros((1, 9), int)
    with pytest.raises(UserError, match="9 tokens, more than max_length=8"):
        run(module, variables, ids, ids == 0)


def test_minilm_is_normalised_on_request():
    module = TOWERS["minilm"]
    variables = draw(module, IDS, MASK)
    unit = run(module, variables, IDS, MASK)
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-1), 1, atol=1e-6)
    raw = run(module.clone(normalise=False), variables, IDS, MASK)
    np.testing.assert_allclose(raw / jnp.linalg.norm(raw, axis=-1, keepdims=True), unit, atol=1e-6)


@pytest.fixture(scope="module")
def llama():
    module = LlamaStack(width=16, depth=2, heads=4, kv_heads=2, mlp_width=24)
    x = jax.random.normal(jax.random.key(0), (2, 6, 16))
    return module, draw(module, x), x


@pytest.mark.parametrize("causal", [False, True])
def test_llama_who_sees_whom(llama, causal):
    module, variables, x = llama
    module = module.clone(causal=causal)
    before = run(module, variables, x)
    after = run(module, variables, x.at[:, 3].add(1.0))
    moved = np.abs(after - before).max(axis=(0, 2)) > 1e-4
    np.testing.assert_array_equal(moved, [not causal] * 3 + [True] * 3)


def test_llama_pads_are_not_seen(llama):
    module, variables, x = llama
    before = run(module, variables, x, mask=MASK)
    after = run(module, variables, jnp.where(MASK[..., None], x, 7.0), mask=MASK)
    np.testing.assert_allclose(np.asarray(before)[MASK], np.asarray(after)[MASK], atol=1e-5)


def test_llama_positions_count_by_their_differences(llama):
    module, variables, x = llama
    default = run(module, variables, x)
    moved = run(module, variables, x, positions=jnp.arange(6) + 5)
    np.testing.assert_allclose(moved, default, atol=1e-4)
    spread = run(module, variables, x, positions=jnp.arange(6) * 3)
    assert jnp.abs(spread - default).max() > 1e-3
