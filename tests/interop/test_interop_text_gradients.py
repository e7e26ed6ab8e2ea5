"""Gradients of text towers against transformers, tensor by tensor."""

from functools import partial

import hugging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_models
import torch
from safetensors.numpy import load_file

from experiments import convert
from jepa.interop import converted
from jepa.models.gemma import EmbeddingGemma
from jepa.models.minilm import MiniLM
from jepa.models.qwen import QwenEmbedding

jit = partial(jax.jit, compiler_options=hugging.FAST)
IDS, MASK = text_models.batch()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "theirs", "tower"),
    [
        ("embedding_gemma", text_models.gemma, EmbeddingGemma),
        ("qwen3_embedding", text_models.qwen, QwenEmbedding),
        ("minilm", text_models.bert, partial(MiniLM, normalise=False)),
    ],
)
def test_gradients_of_every_tensor(tmp_path, name, theirs, tower):
    """Of the mean of a text's hidden states, laid out as theirs by the way out."""
    theirs = theirs()
    params, fields, _ = text_models.made(name, theirs, tmp_path)
    weights = MASK[..., None] / MASK.sum(1)[:, None, None]
    target = np.random.default_rng(1).normal(size=(3, theirs.config.hidden_size))
    theirs.zero_grad()
    given = {"input_ids": torch.tensor(IDS).long(), "attention_mask": torch.tensor(MASK).long()}
    hidden = theirs(**given).last_hidden_state
    ((hidden * torch.tensor(weights)).sum(1) * torch.tensor(target)).sum().backward()
    module = tower(**fields["tower"])

    def loss(p):
        if name == "minilm":  # its result is that mean
            return jnp.sum(module.apply({"params": p}, IDS, MASK) * target)
        hidden = module.apply({"params": p}, IDS, MASK, method="hidden")
        return jnp.sum(jnp.sum(hidden * weights, 1) * target)

    gradients = jax.tree.map(np.asarray, jit(jax.grad(loss))(params["tower"]))
    about = converted.about(tmp_path / "converted")
    converted.save(tmp_path / "gradients", {**params, "tower": gradients}, about)
    convert.convert(name, tmp_path / "gradients", tmp_path / "theirs")
    ours = load_file(tmp_path / "theirs" / "model.safetensors")
    compared = 0
    for of, p in theirs.named_parameters():
        # A bias of BERT's keys moves no attention; what is there is rounding.
        if p.grad is not None and p.grad.abs().max() > 1e-6:
            hugging.assert_close(ours[of], p.grad, 1e-3)
            compared += 1
    assert compared > 10 * theirs.config.num_hidden_layers
