"""The word-level tokenizer that comes with every dataset."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

PAD, UNKNOWN = "[PAD]", "[UNK]"
_LARGEST = 50_000


def train_tokenizer(texts: Iterable[str]) -> str:
    """Lower-case words and punctuation marks of `texts` as a `tokenizers` JSON string.

    Ids: 0 is padding, 1 an unknown word, then words by falling frequency (at most 50 000).
    """
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab={}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=_LARGEST, min_frequency=1, special_tokens=[PAD, UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
