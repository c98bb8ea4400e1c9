"""Tokenizers behind one small interface."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import sentencepiece

from score_jax.errors import UserError


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
        begin = self._processor.bos_id()
        self.begin_tokens = (begin,) if begin >= 0 else ()
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


class Bytes:
    """Every byte of UTF-8 is a token: what a model without a vocabulary of its own reads any text with."""

    begin_tokens, end_tokens, pad_token = (256,), (257,), 258
    vocab_size = 259

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        return list(text.encode('utf-8', errors='replace'))

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens have none, and bytes that are no UTF-8 become U+FFFD."""
        return bytes(int(token) for token in tokens if token < 256).decode('utf-8', errors='replace')


def load(path: str) -> SentencePiece:
    """The tokenizer in a file: a SentencePiece model.

    Raises:
      UserError: no such file, or no SentencePiece model that can end a response.
    """
    try:
        tokenizer = SentencePiece(Path(path).expanduser().read_bytes())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is no SentencePiece model'
        raise UserError(
            f'config.tokenizer is {path!r}, which cannot be read ({reason}); name the .model or .spm file of a '
            "SentencePiece tokenizer, or '' for the task's own.") from None
    if tokenizer.end_tokens[0] < 0:
        raise UserError(f'config.tokenizer is {path!r}, which has no end token (eos), so that no response could end.')
    return tokenizer
