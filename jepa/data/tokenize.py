"""Texts to token ids of fixed length, and to hashes by which equal texts are known.

L token ids of a text. Tokenizing is remembered by text, so a hot loop pays for each distinct text
once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from jepa.errors import UserError

_REMEMBERED = 1 << 17
_PADS = ("[PAD]", "<pad>", "<|finetune_right_pad_id|>", "<|end_of_text|>", "</s>")


def find_tokenizer(name: str, directory: str | Path | None = None) -> Path:
    """The `tokenizer.json` that a config means by `name`.

    Args:
        name: "minilm" (of the installed all-MiniLM-L6-v2), "dataset" (of the dataset in
            `directory`), or a path of the file or of the directory it lies in: from here, or where
            nothing is, as of weights (`interop.paths.locate`).
        directory: The dataset's directory.

    Raises:
        UserError: there is no such file.
    """
    if name == "minilm":
        from jepa.interop import minilm

        path = Path(minilm.directory()) / "tokenizer.json"
    elif name == "dataset":
        if directory is None:
            raise UserError(
                "data.tokenizer is 'dataset', but this data brings none; set it to 'minilm' or to "
                "the path of a tokenizer.json"
            )
        path = Path(directory) / "tokenizer.json"
    else:
        from jepa.interop.paths import locate

        path = Path(name) if Path(name).exists() else locate(name)
        path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"data.tokenizer is {name!r}, but {path} does not exist; set it to 'minilm', "
            "'dataset' or the path of a tokenizer.json"
        )
    return path


def find_prompt(name: str, tokenizer: Path) -> str:
    """What stands before every target, by the name that the model's own files give it.

    Args:
        name: Of a prompt of the file `config_sentence_transformers.json` beside the tokenizer; ""
            for nothing.
        tokenizer: The `tokenizer.json`.

    Raises:
        UserError: there is no such file, or no such prompt in it.
    """
    if not name:
        return ""
    from jepa.interop import sentence

    directory = tokenizer.parent
    if not (directory / sentence.PROMPTS).is_file():
        raise UserError(
            f"data.text_prompt is {name!r}, but {directory} has no {sentence.PROMPTS}; leave it "
            "empty, or take the model's own files"
        )
    known = sentence.prompts(directory)
    if name not in known:
        raise UserError(
            f"data.text_prompt is {name!r}; {directory} names {', '.join(map(repr, known))}"
        )
    return known[name]


class Tokenizer:
    """Texts to `{"ids": int32 [..., L], "mask": bool [..., L]}`; picklable and thread-safe.

    Attributes:
        path: The `tokenizer.json`.
        length: L; longer texts are cut (special tokens stay), shorter ones padded.
        prompt: What stands before every text.
    """

    def __init__(self, path: str | Path, length: int, prompt: str = ""):
        self.path, self.length, self.prompt = Path(path), length, prompt
        self._load()

    def _load(self) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise UserError(f"{self.path} is not a tokenizer.json: {error}") from error
        # The file may carry settings of its own (128 tokens, say); the config's length rules.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.length)
        found = (self._tokenizer.token_to_id(token) for token in _PADS)
        self.pad = next((token for token in found if token is not None), 0)
        self._memory: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "length": self.length, "prompt": self.prompt}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id it can give."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokenize B texts to ids and mask `[B, L]`; UserError for one that has no token."""
        rows = [self._memory.get(text) or self._encode(text) for text in texts]
        shape = (len(rows), self.length)
        ids, mask = np.empty(shape, np.int32), np.empty(shape, np.bool_)
        for row, (tokens, present) in enumerate(rows):
            ids[row], mask[row] = tokens, present
        return {"ids": ids, "mask": mask}

    def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        found = self._tokenizer.encode(self.prompt + text).ids
        if not found:
            raise UserError(f"the text {text!r} has no tokens; remove it from the dataset")
        ids = np.full(self.length, self.pad, np.int32)
        ids[: len(found)] = found
        row = ids, np.arange(self.length) < len(found)
        if len(self._memory) >= _REMEMBERED:
            self._memory.clear()
        self._memory[text] = row
        return row


def text_hash(text: str) -> int:
    """Int32 hash of a text: the same in every process and release (BLAKE2b, 4 bytes)."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def text_hashes(texts: Sequence[str]) -> np.ndarray:
    """`text_hash` of B texts, int32 [B]."""
    return np.asarray([text_hash(text) for text in texts], np.int32)
