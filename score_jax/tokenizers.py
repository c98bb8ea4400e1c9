"""Tokenizers behind one small interface: SentencePiece models, those of Hugging Face, and plain bytes.

Text that is encoded is text alone: what spells a special token in it is no special token, and a lone surrogate, which
no Unicode text has, is read as U+FFFD.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from score_jax.errors import UserError


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer."""

    vocab_size: int  # what `encode`, `prompt` and `instruction` give lies below, and so do the end tokens
    begin_tokens: tuple[int, ...]  # what every prompt starts with
    end_tokens: tuple[int, ...]  # what ends a response; the first is what ends one that is written here
    close_token: int | None  # what must stand behind a response before the instruction comes; None: nothing
    pad_token: int

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens have none."""

    def prompt(self, text: str) -> list[int]:
        """What the first response is sampled from, where the model is asked `text`."""

    def instruction(self, text: str) -> list[int]:
        """What stands between a response, its end token included, and the next one, where the model is told `text`."""


class PlainText:
    """Prompts and instructions as they are, for a model that goes on writing: no chat format."""

    close_token = None

    def prompt(self, text: str) -> list[int]:
        """`text` behind the begin tokens."""
        return [*self.begin_tokens, *self.encode(text)]

    def instruction(self, text: str) -> list[int]:
        """`text` alone."""
        return self.encode(text)


def unicode(text: str) -> str:
    """`text` with U+FFFD in place of each lone surrogate; a pair of them is the character that it means."""
    if text.isascii():
        return text
    return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


class SentencePiece(PlainText):
    """A SentencePiece model: `begin` and `end` tokens as the model names them."""

    def __init__(self, model_proto: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        self.vocab_size = self._processor.vocab_size()
        begin = self._processor.bos_id()
        self.begin_tokens = (begin,) if begin >= 0 else ()
        self.begin_text = self._processor.id_to_piece(begin) if begin >= 0 else ''
        self.end_tokens = (self._processor.eos_id(),)
        self.pad_token = max(self._processor.pad_id(), 0)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added; a piece that the model's user defined is one, spelled out."""
        return self._processor.encode(unicode(text))

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens and ids that are none have no text."""
        return self._processor.decode([int(token) for token in tokens if token < self.vocab_size])

    def parse(self, text: str) -> list[int]:
        """Token ids of `text`, in which special tokens are spelled out; of those that no text has, the begin token."""
        rest = text.removeprefix(self.begin_text)
        return [*(self.begin_tokens if rest != text else ()), *self.encode(rest)]

    def special_token(self, name: str) -> int | None:
        """The id of a special token; None if there is none of this name."""
        token = self._processor.piece_to_id(name)
        return None if token == self._processor.unk_id() else token


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What the special tokens of a family are called.

    Attributes:
      begin: of a text; '' if there is none.
      end: of a text, then of a turn in a chat. All that a tokenizer has end a response; the first it must have.
      pad: where the tokenizer lacks it, the end of a text is taken: no mask is read from tokens.
    """

    begin: str
    end: tuple[str, ...]
    pad: str


# A tokenizer.json does not say which of its tokens begin and end a text. The first row whose names it has.
SPECIAL_TOKENS = {
    'llama3': SpecialTokens('<|begin_of_text|>', ('<|end_of_text|>', '<|eot_id|>', '<|eom_id|>'),
                            '<|finetune_right_pad_id|>'),
    'gemma': SpecialTokens('<bos>', ('<eos>', '<end_of_turn>'), '<pad>'),
    'llama2': SpecialTokens('<s>', ('</s>',), '<unk>'),
    'qwen and gpt2': SpecialTokens('', ('<|endoftext|>', '<|im_end|>'), '<|endoftext|>'),
}


class HuggingFace(PlainText):
    """The tokenizer in a `tokenizer.json`, whose special tokens are those of a row of `SPECIAL_TOKENS`.

    Raises:
      UserError: the file cannot be read, or it has the special tokens of none of them.
    """

    def __init__(self, path: Path):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except OSError as error:
            raise _unreadable(path, error.strerror) from None
        except Exception:  # the library raises Exception itself
            raise _unreadable(path, 'it is no tokenizer.json') from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # as text
        for row in SPECIAL_TOKENS.values():
            if all(self.special_token(name) is not None for name in (row.begin, row.end[0]) if name):
                break
        else:
            known = ', '.join(row.end[0] for row in SPECIAL_TOKENS.values())
            raise UserError(
                f'config.tokenizer is {str(path)!r}, which has none of the tokens {known} that end a text (with the '
                'begin token of the same family), so that no response could end; name one of a known family.')
        found = [self.special_token(name) for name in (*row.end, row.pad)]
        self.begin_tokens, self.begin_text = (self.special_token(row.begin),) if row.begin else (), row.begin
        self.end_tokens = tuple(token for token in found[:-1] if token is not None)
        self.pad_token = self.end_tokens[0] if found[-1] is None else found[-1]
        # Other special tokens are never read from text, and may lie beyond the vocabulary of a model (Gemma 3's image).
        special = {token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}
        from_text = set(self._tokenizer.get_vocab().values()) - special
        self.vocab_size = 1 + max(from_text | {*self.begin_tokens, *self.end_tokens, self.pad_token})

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        return self._tokenizer.encode(unicode(text), add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens and ids that are none have no text."""
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)

    def parse(self, text: str) -> list[int]:
        """Token ids of `text`, in which special tokens are spelled out."""
        self._tokenizer.encode_special_tokens = False
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        self._tokenizer.encode_special_tokens = True
        return tokens

    def special_token(self, name: str) -> int | None:
        """The id of a special token; None if there is none of this name."""
        return self._tokenizer.token_to_id(name)


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


class Bytes(PlainText):
    """Every byte of UTF-8 is a token: what a model without a vocabulary of its own reads any text with."""

    begin_tokens, end_tokens, pad_token = (256,), (257,), 258
    vocab_size = 259

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        return list(unicode(text).encode())

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens have none, and bytes that are no UTF-8 become U+FFFD."""
        return bytes(int(token) for token in tokens if token < 256).decode('utf-8', errors='replace')


_NAMES = ('tokenizer.json', 'tokenizer.model', 'tokenizer.spm')  # in a directory, the first that is there


def load(path: str) -> SentencePiece | HuggingFace:
    """The tokenizer in a file, or in the directory of a Hugging Face model.

    Raises:
      UserError: no such file, or no tokenizer that can end a response.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        place = next((place / name for name in _NAMES if (place / name).exists()), None)
        if place is None:
            raise UserError(f'config.tokenizer is {path!r}, a directory with none of {", ".join(_NAMES)}; name a file.')
    if place.suffix == '.json':
        return HuggingFace(place)
    try:
        tokenizer = SentencePiece(place.read_bytes())
    except (OSError, RuntimeError) as error:
        raise _unreadable(place, getattr(error, 'strerror', None) or 'it is no SentencePiece model') from None
    if tokenizer.end_tokens[0] < 0:
        raise UserError(f'config.tokenizer is {path!r}, which has no end token (eos), so that no response could end.')
    return tokenizer


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(
        f'config.tokenizer is {str(path)!r}, which cannot be read ({reason}); name the .model or .spm file of a '
        "SentencePiece tokenizer, a tokenizer.json, the directory of a Hugging Face model, or '' for the task's own.")
