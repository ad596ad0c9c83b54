"""A tokenizer of whole words, as the library reads it: texts then work with models of our own, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


def build(vocabulary: Sequence[str], start: str | None) -> Any:
    """A tokenizer whose token i is the word vocabulary[i]; texts are split at spaces and punctuation.

    start: the word before every text (also used for padding). A word that is not in the vocabulary is an
    error, not a token.
    """
    words = {word: i for i, word in enumerate(vocabulary)}
    if len(words) < len(vocabulary):
        raise ValueError("a word is in the vocabulary twice")
    inner = Tokenizer(models.WordLevel(words))  # type: ignore[call-arg]
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = {} if start is None else {"bos_token": start, "pad_token": start}
    if start is not None:
        inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{start} $A", special_tokens=[(start, words[start])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=True, **special)


def byte_level_bpe(rows: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer like GPT-2's, trained on these rows; at most `vocabulary` tokens."""
    inner = Tokenizer(models.BPE())  # type: ignore[call-arg]
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(rows, trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)
