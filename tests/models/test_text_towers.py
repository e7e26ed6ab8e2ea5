from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import draw, quick, run

from jepa.errors import UserError
from jepa.models.gemma import EmbeddingGemma
from jepa.models.llama import LLAMAS, VOCAB, Llama, LlamaStack
from jepa.models.minilm import MiniLM
from jepa.models.qwen import QWENS, QwenEmbedding
from jepa.models.text import TextTransformer

IDS = jnp.array([[2, 5, 7, 3, 0, 0], [2, 9, 4, 8, 6, 3]])
MASK = IDS != 0

TOWERS = {
    "text": TextTransformer(vocab=12, width=16, depth=2, heads=2, max_length=8),
    "minilm": MiniLM(vocab=12, width=16, depth=2, heads=2, mlp_width=24, max_length=8),
    "gemma": EmbeddingGemma(
        vocab=12,
        width=16,
        depth=3,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp_width=24,
        window=4,
        full_every=3,
        max_length=8,
        dense_width=20,
    ),
    "qwen": QwenEmbedding(
        vocab=12,
        width=16,
        depth=2,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp_width=24,
        max_length=8,
    ),
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


@pytest.mark.parametrize("name", ["minilm", "gemma", "qwen"])
def test_published_towers_are_normalised_on_request(name):
    module = TOWERS[name]
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


def test_gemma_sees_near_tokens_in_most_layers_and_all_in_some():
    """A change at one place moves the states in its reach, until a layer that sees all."""
    ids = jnp.arange(1, 9)[None]
    mask = ids > 0
    for layers, reach in ((2, 4), (3, 7)):
        module = TOWERS["gemma"].clone(depth=layers)
        variables = draw(module, ids, mask)
        hidden = quick(partial(module.apply, method="hidden"))
        difference = hidden(variables, ids.at[0, 0].set(11), mask) - hidden(variables, ids, mask)
        moved = np.abs(difference[0]).max(axis=1) > 1e-5
        np.testing.assert_array_equal(moved, np.arange(8) <= reach)


def test_gemma_without_its_dense_layers_has_none():
    module = TOWERS["gemma"].clone(dense_width=None)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IDS, MASK)["params"]
    assert "widen" not in shapes
    assert "narrow" not in shapes


def test_the_logits_of_a_tied_llama_are_products_with_its_table():
    stack = partial(LlamaStack, width=16, depth=1, heads=2, mlp_width=24, causal=True)
    module = Llama(vocab=12, stack=stack)
    variables = draw(module, IDS)
    hidden = quick(partial(module.apply, method="hidden"))(variables, IDS)
    expected = hidden @ variables["params"]["table"]["embedding"].T
    np.testing.assert_allclose(run(module, variables, IDS), expected, atol=1e-5)


def _count(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "tied", "parameters"),
    [
        ("llama-3.2-1b", True, 1_235_814_400),
        ("llama-3.2-3b", True, 3_212_749_824),
        ("llama-3.1-8b", False, 8_030_261_248),
    ],
)
def test_llamas_have_the_published_numbers_of_parameters(name, tied, parameters):
    module = Llama(vocab=VOCAB, stack=partial(LlamaStack, **LLAMAS[name]), tied=tied)
    assert _count(module, IDS) == parameters


def test_embedding_gemma_has_307_6_million_parameters_with_its_dense_layers():
    # 24 layers, the last norm, the table; and the two maps.
    attention = 2 * 768 * 768 + 2 * 768 * 256 + 2 * 256
    layer = attention + 3 * 768 * 1152 + 4 * 768
    expected = 24 * layer + 768 + 262144 * 768
    assert _count(EmbeddingGemma(dense_width=None), IDS, MASK) == expected
    total = _count(EmbeddingGemma(), IDS, MASK)
    assert total == expected + 2 * 768 * 3072
    assert total / 1e6 == pytest.approx(307.6, abs=0.05)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3-embedding-0.6b", 0.596),
        ("qwen3-embedding-4b", 4.02),
        ("qwen3-embedding-8b", 7.57),
    ],
)
def test_qwens_have_the_published_numbers_of_parameters(name, billions):
    total = _count(QwenEmbedding(**QWENS[name]), IDS, MASK)
    assert total / 1e9 == pytest.approx(billions, abs=0.005)
