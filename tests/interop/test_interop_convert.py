"""What `experiments.convert` does with what a user says: files by name, settings, paths."""

import hugging
import pytest
import text_models

from experiments import convert
from jepa.errors import UserError
from jepa.interop import converted, sentence


def test_a_file_brings_what_its_directory_holds(tmp_path):
    """By the name of its file a model is the same as by its directory: maps, pooling, prompts."""
    published, file = tmp_path / "published", tmp_path / "published" / "model.safetensors"
    text_models.save_gemma(published, text_models.gemma(layers=1), text_models.maps())
    (published / "tokenizer.json").write_text("{}")
    convert.convert("embedding_gemma", file, tmp_path / "converted")
    about = converted.about(tmp_path / "converted")
    assert about["fields"]["tower"]["dense_width"] == 48
    convert.convert("embedding_gemma", tmp_path / "converted", tmp_path / "back")
    for folder in ("", "2_Dense", "3_Dense"):
        assert hugging.tensors(tmp_path / "back" / folder) == hugging.tensors(published / folder)
    for name in ("tokenizer.json", sentence.MODULES, sentence.PROMPTS, "1_Pooling/config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (published / name).read_bytes()
    pooling = '{"pooling_mode_cls_token": true}'
    (published / "1_Pooling" / "config.json").write_text(pooling)
    with pytest.raises(UserError, match="pools by cls_token"):
        convert.convert("embedding_gemma", file, tmp_path / "other")
