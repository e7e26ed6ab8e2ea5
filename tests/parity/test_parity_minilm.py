"""The text tower, with its real weights, against transformers' BERT with the same file."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from jepa.interop import minilm as weights
from jepa.models.minilm import MiniLM

SENTENCES = [
    f"{start} {colour} {shape} {verb}"
    for start, colour, shape, verb in itertools.product(
        ("A", "There is one", "In this noisy video, after a long pause, we can see a"),
        ("red", "ultramarine", "grey"),
        ("ball", "octagon"),
        ("falls.", "bounces twice!", "passes behind the wall, then vanishes", "moves left", "—"),
    )
] + [
    "",
    "Why?",
    "the same the same the same",
    "naïve café, 東京",
    "3.14159 + 2 = 5.14159",
    "What colour is the shape that hits the floor first, and what happens to the other one?",
    *(f"item {i} of a list of things" for i in range(6)),
]


@pytest.fixture(scope="module")
def encoded():
    tokenizer = Tokenizer.from_file(str(weights.directory() / "tokenizer.json"))
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(32)
    texts = tokenizer.encode_batch(SENTENCES)
    ids = np.array([text.ids for text in texts], np.int32)
    return ids, np.array([text.attention_mask for text in texts], bool)


@pytest.fixture(scope="module")
def ours(encoded):
    params = weights.load_params()
    return np.asarray(jax.jit(MiniLM().apply)({"params": params}, *map(jnp.asarray, encoded)))


def test_sentence_embeddings_are_the_published_ones(encoded, ours):
    ids, mask = encoded
    assert len(SENTENCES) >= 100
    model = BertModel.from_pretrained(
        weights.directory(), local_files_only=True, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        tokens = model(
            input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    expected = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    cosines = np.sum(expected * ours, axis=1)
    assert cosines.min() >= 0.99999
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_embeddings_know_meanings(ours):
    # Sanity beyond parity: the same scene in other words is nearer than another scene.
    index = {sentence: i for i, sentence in enumerate(SENTENCES)}
    red, one_red, grey = (
        ours[index[s]] for s in ("A red ball falls.", "There is one red ball falls.", "Why?")
    )
    assert red @ one_red > 0.8 > red @ grey + 0.3
