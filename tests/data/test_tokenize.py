"""Tokens of fixed length and hashes of texts."""

import json
import pickle

import numpy as np
import pytest

from jepa.data import tokenize
from jepa.data.vocabulary import train_tokenizer
from jepa.errors import UserError


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(train_tokenizer(["a red ball falls", "a blue box slides"]))
    return file


def test_ids_are_padded_and_cut(path):
    tokenizer = tokenize.Tokenizer(path, 3)
    found = tokenizer(["a ball", "a red ball falls", "Red"])
    assert found["ids"].dtype == np.int32 and found["mask"].dtype == np.bool_
    assert found["mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert found["ids"][0, 2] == tokenizer.pad == 0
    assert found["ids"][0, 1] == found["ids"][1, 2]
    assert found["ids"][2, 0] == found["ids"][1, 1]
    assert found["ids"].max() < tokenizer.vocabulary_size


def test_a_second_call_and_a_pickled_copy_give_the_same(path):
    tokenizer = tokenize.Tokenizer(path, 5)
    first = tokenizer(["a red box", "a blue ball"])
    for other in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        again = other(["a red box", "a blue ball"])
        np.testing.assert_array_equal(first["ids"], again["ids"])
        np.testing.assert_array_equal(first["mask"], again["mask"])


def test_forgetting_changes_nothing(path, monkeypatch):
    monkeypatch.setattr(tokenize, "_REMEMBERED", 2)
    tokenizer = tokenize.Tokenizer(path, 4)
    texts = ["a red", "a blue", "a ball", "a red", "slides"]
    np.testing.assert_array_equal(
        tokenizer(texts)["ids"], tokenize.Tokenizer(path, 4)(texts)["ids"]
    )


def test_minilm_matches_its_published_tokenizer():
    transformers = pytest.importorskip("transformers")
    directory = tokenize.find_tokenizer("minilm").parent
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), pad_token="[PAD]"
    )
    texts = ["A red ball bounces, then hides!", "word " * 40]
    want = theirs(texts, padding="max_length", truncation=True, max_length=12)
    ours = tokenize.Tokenizer(directory / "tokenizer.json", 12)(texts)
    np.testing.assert_array_equal(ours["ids"], want["input_ids"])
    np.testing.assert_array_equal(ours["mask"], want["attention_mask"])


def test_hashes_tell_texts_apart_and_never_change():
    assert tokenize.text_hash("a red ball") == tokenize.text_hash("a red " + "ball")
    assert tokenize.text_hash("a red ball") != tokenize.text_hash("a red ball ")
    codes = tokenize.text_hashes([f"text {i}" for i in range(1000)])
    assert codes.dtype == np.int32 and len(set(codes.tolist())) == 1000
    assert (codes < 0).any() and (codes > 0).any()


def test_mistakes_are_named(tmp_path, path):
    with pytest.raises(UserError, match="no tokens"):
        tokenize.Tokenizer(path, 4)(["   "])
    with pytest.raises(UserError, match="nowhere"):
        tokenize.find_tokenizer("/nowhere/tokenizer.json")
    with pytest.raises(UserError, match="dataset"):
        tokenize.find_tokenizer("dataset", None)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"bad\.json"):
        tokenize.Tokenizer(tmp_path / "bad.json", 4)
    assert tokenize.find_tokenizer(str(tmp_path)) == path


def test_a_tokenizer_may_lie_with_its_weights(tmp_path, path, monkeypatch):
    monkeypatch.setenv("JEPA_WEIGHTS", str(tmp_path.parent))
    assert tokenize.find_tokenizer(tmp_path.name) == path


def test_a_prompt_of_the_model_s_own_files_stands_before_every_text(tmp_path, path):
    prompts = {"prompts": {"document": "a blue ", "query": ""}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    prompt = tokenize.find_prompt("document", path)
    prompted = pickle.loads(pickle.dumps(tokenize.Tokenizer(path, 4, prompt)))
    plain = tokenize.Tokenizer(path, 4)
    for name, array in prompted(["ball", "box slides"]).items():
        np.testing.assert_array_equal(array, plain(["a blue ball", "a blue box slides"])[name])
    assert tokenize.find_prompt("", path) == ""
    with pytest.raises(UserError, match=r"text_prompt is 'title'.*'document', 'query'"):
        tokenize.find_prompt("title", path)
    (tmp_path / "config_sentence_transformers.json").unlink()
    with pytest.raises(UserError, match="has no config_sentence_transformers.json"):
        tokenize.find_prompt("document", path)
