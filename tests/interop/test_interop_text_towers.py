"""Text models against transformers: the same function, and the same files when they come back."""

import json
import shutil
from functools import partial

import hugging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_models
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, BertModel, LlamaForCausalLM

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted, loading, parameters, sentence
from jepa.interop import llama as llama_files
from jepa.interop.registry import model as known
from jepa.interop.tensors import open_tensors
from jepa.models.gemma import EmbeddingGemma
from jepa.models.llama import LLAMAS, VOCAB, LlamaStack
from jepa.models.minilm import MiniLM
from jepa.models.qwen import QwenEmbedding
from jepa.nn.rotary import LongContext

jit = partial(jax.jit, compiler_options=hugging.FAST)
IDS, MASK = text_models.batch()


def comes_back(name, directory):
    """Checks that all tensors of all folders are those of the published directory, bit by bit."""
    convert.convert(name, directory / "converted", directory / "back")
    first = {p.parent for p in (directory / "published").rglob("*.safetensors")}
    assert first
    for folder in first:
        again = directory / "back" / folder.relative_to(directory / "published")
        assert hugging.tensors(folder) == hugging.tensors(again)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    theirs = text_models.llama()
    return theirs, *text_models.made("llama", theirs, tmp_path_factory.mktemp("llama"))


def test_llama_s_hidden_states_and_logits(llama):
    theirs, params, fields, _ = llama
    module = llama_files.module(fields["decoder"])
    # Texts longer than the context before the rescaling of slow frequencies.
    positions = 7 * np.arange(text_models.LENGTH)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(IDS).long(),
            position_ids=torch.tensor(positions)[None],
            output_hidden_states=True,
        )
    variables = {"params": params["decoder"]}
    given = {"positions": jnp.asarray(positions, jnp.float32)}
    hidden = jit(partial(module.apply, method="hidden"))(variables, IDS, **given)
    hugging.assert_close(hidden, out.hidden_states[-1])
    hugging.assert_close(jit(module.apply)(variables, IDS, **given), out.logits)


def test_llama_s_gradients(llama):
    theirs, params, fields, _ = llama
    module = llama_files.module(fields["decoder"])
    target = np.random.default_rng(1).normal(size=(3, text_models.LENGTH, 32)).astype(np.float32)
    theirs.zero_grad()
    hidden = theirs.model(input_ids=torch.tensor(IDS).long()).last_hidden_state
    (hidden * torch.tensor(target)).sum().backward()

    def loss(decoder):
        found = module.apply({"params": decoder}, IDS, method="hidden")
        return jnp.sum(found * target)

    ours = {"decoder": jit(jax.grad(loss))(params["decoder"])}
    layout = known("llama").plan(theirs.config.to_dict()).layout
    flat = loading.flatten(ours)
    for name, (path, piece) in layout.theirs().items():
        got = piece.to_theirs(np.asarray(flat[path][piece.place]))
        hugging.assert_close(got, theirs.get_parameter(name).grad, 1e-3)


def test_a_span_of_llama_s_layers(llama):
    theirs, params, _, directory = llama
    plan = llama_files.span(theirs.config.to_dict(), (1, 3))
    found = loading.load(open_tensors(directory / "published"), plan.layout)["decoder"]
    jax.tree.map(
        lambda some, whole: np.testing.assert_array_equal(some, whole[1:3]),
        found["llama"]["blocks"],
        params["decoder"]["llama"]["blocks"],
    )
    x = np.random.default_rng(0).normal(size=(2, 9, 32)).astype(np.float32)
    with torch.no_grad():
        expected = torch.tensor(x)
        rotary = theirs.model.rotary_emb(expected, torch.arange(9)[None])
        for layer in theirs.model.layers[1:3]:
            # Without a mask its layers look both ways.
            expected = layer(expected, position_embeddings=rotary, attention_mask=None)
        expected = theirs.model.norm(expected)
    stack = dict(plan.fields["decoder"]["stack"])
    stack.update(causal=False, scaling=LongContext(**stack["scaling"]))
    got = jit(LlamaStack(**stack).apply)({"params": found["llama"]}, x)
    hugging.assert_close(got, expected)


def test_spans_that_do_not_exist_are_refused():
    content = text_models.llama().config.to_dict()
    with pytest.raises(UserError, match=r"layers \(2, 5\) are asked for, but the model has 4"):
        llama_files.span(content, (2, 5))


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_llama_comes_back_in_several_files_and_loads_without_a_warning(tmp_path, caplog, tied):
    theirs = text_models.llama(tied)
    params, fields, _ = text_models.made("llama", theirs, tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "published").glob("*.safetensors"))) > 2
    assert ("head" in params["decoder"]) is not tied
    comes_back("llama", tmp_path)
    with hugging.silent(caplog):
        again = LlamaForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    with torch.no_grad():
        expected = again(input_ids=torch.tensor(IDS).long()).logits
    module = llama_files.module(fields["decoder"])
    hugging.assert_close(jit(module.apply)({"params": params["decoder"]}, IDS), expected)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    theirs = text_models.gemma()
    return theirs, *text_models.made("embedding_gemma", theirs, tmp_path_factory.mktemp("gemma"))


def gemma_by_hand(model, matrices, ids, mask):
    """What sentence-transformers does with a directory: mean, two maps, unit length."""
    hidden = text_models.hidden(model, ids, mask)
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    for matrix in matrices:
        mean = mean @ matrix.numpy().T
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def test_embedding_gemma(gemma):
    theirs, params, fields, _ = gemma
    module = EmbeddingGemma(**fields["tower"])
    assert module.window < 2 * text_models.LENGTH
    variables = {"params": params["tower"]}
    expected = text_models.hidden(theirs, IDS, MASK)
    hidden = jit(partial(module.apply, method="hidden"))(variables, IDS, MASK)
    hugging.assert_close(np.asarray(hidden)[MASK], expected[MASK])
    # The window matters: with a wider one the states of the long text are others.
    wide = text_models.hidden(text_models.gemma(window=60), IDS, MASK)
    assert np.abs(wide - expected)[0].max() > 1e-2 * np.abs(expected).max()
    pooled = gemma_by_hand(theirs, text_models.maps(), IDS, MASK)
    hugging.assert_close(jit(module.apply)(variables, IDS, MASK), pooled)


def test_embedding_gemma_comes_back_with_all_its_folders(gemma, caplog):
    _, params, fields, directory = gemma
    comes_back("embedding_gemma", directory)
    published, back = directory / "published", directory / "back"
    beside = [name for name in sentence.BESIDE if (published / name).exists()]
    assert "3_Dense/config.json" in beside
    for name in beside:
        assert (back / name).read_bytes() == (published / name).read_bytes()
    assert sentence.prompts(back) == text_models.PROMPTS
    with hugging.silent(caplog):
        again = AutoModel.from_pretrained(back, attn_implementation="eager")
    matrices = [
        torch.tensor(load_file(back / folder / "model.safetensors")["linear.weight"])
        for folder in ("2_Dense", "3_Dense")
    ]
    expected = gemma_by_hand(again, matrices, IDS, MASK)
    module = EmbeddingGemma(**fields["tower"])
    hugging.assert_close(jit(module.apply)({"params": params["tower"]}, IDS, MASK), expected)


def test_embedding_gemma_without_its_folders_has_no_maps(tmp_path):
    text_models.gemma(layers=2, every=6).save_pretrained(tmp_path / "bare")
    convert.convert("embedding_gemma", tmp_path / "bare", tmp_path / "converted")
    fields = converted.about(tmp_path / "converted")["fields"]["tower"]
    assert fields["dense_width"] is None
    # Two layers see near tokens alone.
    assert fields["full_every"] > 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "2_Dense/model.safetensors").unlink(), "2_Dense has neither"),
        (lambda d: change(d / "3_Dense/config.json", bias=True), "bias is True"),
        (
            lambda d: change(
                d / "1_Pooling/config.json",
                pooling_mode_mean_tokens=False,
                pooling_mode_cls_token=True,
            ),
            "pools by cls_token",
        ),
        (lambda d: change(d / "config.json", use_bidirectional_attention=False), "bidirectional"),
        (lambda d: change(d / "config.json", hidden_size=32), "of another shape"),
        (lambda d: change(d / "config.json", model_type="llama"), "model_type 'llama'"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
    ],
)
def test_what_is_no_embedding_gemma_is_refused(gemma, tmp_path, spoil, message):
    directory = gemma[3]
    shutil.copytree(directory / "published", tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(UserError, match=message):
        convert.convert("embedding_gemma", tmp_path / "spoilt", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "kind",
    [text_models.qwen, pytest.param(text_models.qwen_language_model, marks=pytest.mark.slow)],
)
def test_qwen_embedding(tmp_path, caplog, kind):
    theirs = kind()
    params, fields, _ = text_models.made("qwen3_embedding", theirs, tmp_path)
    base = getattr(theirs, "model", theirs)
    expected = text_models.hidden(base, IDS, MASK)
    module = QwenEmbedding(**fields["tower"])
    variables = {"params": params["tower"]}
    hidden = jit(partial(module.apply, method="hidden"))(variables, IDS, MASK)
    hugging.assert_close(np.asarray(hidden)[MASK], expected[MASK])
    last = expected[np.arange(3), MASK.sum(1) - 1]
    pooled = last / np.linalg.norm(last, axis=1, keepdims=True)
    hugging.assert_close(jit(module.apply)(variables, IDS, MASK), pooled)
    comes_back("qwen3_embedding", tmp_path)
    with hugging.silent(caplog):
        again = AutoModel.from_pretrained(tmp_path / "back", attn_implementation="eager")
    np.testing.assert_array_equal(text_models.hidden(again, IDS, MASK), expected)


def test_qwen_s_files_may_bear_the_name_of_the_language_model(tmp_path):
    """As published: tensors of the bare model beside a config of the one with logits."""
    theirs = text_models.qwen()
    theirs.save_pretrained(tmp_path / "published")
    path = tmp_path / "published/config.json"
    change(path, architectures=["Qwen3ForCausalLM"], tie_word_embeddings=False)
    convert.convert("qwen3_embedding", tmp_path / "published", tmp_path / "converted")
    comes_back("qwen3_embedding", tmp_path)


def test_bert_comes_back(tmp_path, caplog):
    theirs = text_models.bert()
    params, fields, _ = text_models.made("minilm", theirs, tmp_path)
    expected = text_models.hidden(theirs, IDS, MASK)
    mean = (expected * MASK[..., None]).sum(1) / MASK.sum(1, keepdims=True)
    module = MiniLM(**fields["tower"], normalise=False)
    hugging.assert_close(jit(module.apply)({"params": params["tower"]}, IDS, MASK), mean)
    comes_back("minilm", tmp_path)
    with hugging.silent(caplog):
        again = BertModel.from_pretrained(tmp_path / "back", attn_implementation="eager")
    np.testing.assert_array_equal(text_models.hidden(again, IDS, MASK), expected)


def test_published_configs_have_the_sizes_of_the_tables():
    """Older keys for the rotary bases, as in the published files; no numbers are read."""
    gemma = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "vocab_size": 262144,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 2048,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4,
        "use_bidirectional_attention": True,
        "jepa_dense_width": 3072,
    }
    assert (
        EmbeddingGemma(**known("embedding_gemma").plan(gemma).fields["tower"]) == EmbeddingGemma()
    )
    llama = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    }
    plan = llama_files.span(llama, (8, 16))
    stack = {**plan.fields["decoder"]["stack"], "scaling": LongContext()}
    wanted = LlamaStack(**{**LLAMAS["llama-3.2-1b"], "depth": 8, "causal": True})
    assert LlamaStack(**stack) == wanted
    # 8 layers, the last norm and the token table.
    numbers = sum(np.prod(leaf.shape) for leaf in plan.layout.leaves.values())
    assert numbers == 486_574_080 + VOCAB * 2048


@pytest.mark.parametrize("form", ["converted", pytest.param("published", marks=pytest.mark.slow)])
def test_what_was_trained_here_leaves_in_the_frame_of_what_it_began_as(
    tmp_path, caplog, form, gemma
):
    directory = gemma[3]
    trained = jax.tree.map(lambda p: np.asarray(p) * 1.5, gemma[1]["tower"])
    parameters.save(tmp_path / "tower.safetensors", trained, {"part": "y_encoder/tower"})
    convert.main(
        [
            "--model=embedding_gemma",
            f"--from={tmp_path / 'tower.safetensors'}",
            f"--like={directory / form}",
            f"--to={tmp_path / 'out'}",
        ]
    )
    with hugging.silent(caplog):
        theirs = AutoModel.from_pretrained(tmp_path / "out", attn_implementation="eager")
    matrices = [
        torch.tensor(load_file(tmp_path / "out" / folder / "model.safetensors")["linear.weight"])
        for folder in ("2_Dense", "3_Dense")
    ]
    module = EmbeddingGemma(**gemma[2]["tower"])
    got = jit(module.apply)({"params": trained}, IDS, MASK)
    hugging.assert_close(got, gemma_by_hand(theirs, matrices, IDS, MASK))
    assert (tmp_path / "out/config_sentence_transformers.json").exists()


def test_parts_that_a_run_has_no_use_for_stay_as_they_were(tmp_path):
    theirs = text_models.bert()
    params, _, _ = text_models.made("minilm", theirs, tmp_path)
    trained = jax.tree.map(lambda p: np.asarray(p) + 1, params["tower"])
    parameters.save(tmp_path / "tower.safetensors", trained, {})
    source, like = tmp_path / "tower.safetensors", tmp_path / "published"
    convert.convert("minilm", source, tmp_path / "out", like=like)
    before, after = (load_file(d / "model.safetensors") for d in (like, tmp_path / "out"))
    for name in before:
        moved = 0 if name.startswith("pooler.") else 1
        np.testing.assert_array_equal(after[name], before[name] + np.float32(moved))
    del trained["norm"]
    parameters.save(tmp_path / "some.safetensors", trained, {})
    with pytest.raises(UserError, match="none of this model's .*norm/bias is not in both"):
        convert.convert("minilm", tmp_path / "some.safetensors", tmp_path / "no", like=like)
    assert not (tmp_path / "no").exists()
