"""Tokenizers behind one small interface."""

from __future__ import annotations

import io
from typing import Protocol

import sentencepiece


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer."""

    vocab_size: int
    begin_tokens: tuple[int, ...]  # what every prompt starts with
    end_tokens: tuple[int, ...]  # what ends a response
    pad_token: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


class SentencePiece:
    """A SentencePiece model: `begin` and `end` tokens as the model names them."""

    def __init__(self, model_proto: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        self.vocab_size = self._processor.vocab_size()
        self.begin_tokens = (self._processor.bos_id(),)
        self.end_tokens = (self._processor.eos_id(),)
        self.pad_token = max(self._processor.pad_id(), 0)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        return self._processor.encode(text)

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens have none."""
        return self._processor.decode([int(token) for token in tokens])


def word_sentencepiece(words: list[str]) -> SentencePiece:
    """A tiny SentencePiece model in which each of `words`, after a space, is one token.

    Other text falls back to the single characters that occur in `words`.
    """
    characters = set(''.join(words))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([''.join(sorted(characters))]), model_writer=model, model_type='bpe',
        vocab_size=4 + len(words) + len(characters) + 1, character_coverage=1.0,
        user_defined_symbols=['\u2581' + word for word in words],
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, minloglevel=2)
    return SentencePiece(model.getvalue())
