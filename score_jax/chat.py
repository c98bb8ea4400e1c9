"""Chat formats: how a conversation with a model that was tuned to chat is laid out in tokens.

    begin  opening  user's turn  <open>  response <end>  after  user's turn  <open>  response <end>
    |------------- prompt -------------|                 |---- instruction ------|

`opening` is what the model's own template puts before the first turn (a system prompt, or nothing). The second attempt
is sampled behind the exact tokens of the first: nothing is decoded and encoded again, and nothing is left out of it. A
response that is cut short has no end token of its own; `close_token` is put behind it, as part of the instruction.

A directory of a model brings a template of its own (Jinja). It says nothing here but the opening; that the format gives
the same tokens is checked once, before anything runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import jinja2.ext
import jinja2.sandbox

from score_jax.errors import UserError
from score_jax.tokenizers import HuggingFace, SentencePiece

_SPECIAL = re.compile(r'(<[^<>\s]+>)')  # a special token in a layout
_THOUGHTS = re.compile(r'<think>.*</think>\s*', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a family writes a turn: `open`, the text, `end`, `after`.

    Attributes:
      open: with `{role}`, which is 'system', 'user' or `model`.
      end: the special token that ends a turn.
      after: the text between two turns.
      drops_thoughts: its templates may leave out what stands in <think> in all turns but the last. Here it stays: the
        second attempt reads the first as it is.
    """

    open: str
    end: str
    after: str
    model: str = 'assistant'
    drops_thoughts: bool = False

    def turn(self, role: str) -> str:
        """The layout of a turn that is over; the field {text} is its text."""
        return f'{self.opened(role)}{{text}}{self.end}{self.after}'

    def opened(self, role: str) -> str:
        """The layout of what stands before the text of a turn."""
        return self.open.replace('{role}', role)


FORMATS = {
    'gemma': Format('<start_of_turn>{role}\n', '<end_of_turn>', '\n', model='model'),
    'qwen': Format('<|im_start|>{role}\n', '<|im_end|>', '\n', drops_thoughts=True),
    'llama3': Format('<|start_header_id|>{role}<|end_header_id|>\n\n', '<|eot_id|>', ''),
}


class Chat:
    """A tokenizer whose prompts and instructions are turns of a chat.

    Args:
      tokenizer: of the model.
      name: of a row of `FORMATS`.
      system: the text of the turn that stands before all others; None: there is none.

    Raises:
      UserError: no such format, or the tokenizer lacks its special tokens.
    """

    def __init__(self, tokenizer: SentencePiece | HuggingFace, name: str, system: str | None = None):
        if name not in FORMATS:
            raise UserError(f"config.chat is {name!r}; it must be one of {', '.join(FORMATS)}, or '' for plain text.")
        self.format, self._tokenizer, self._system = FORMATS[name], tokenizer, system
        layout = self.format.turn('user')
        self._special = {special: tokenizer.special_token(special) for special in _SPECIAL.findall(layout)}
        missing = [special for special, token in self._special.items() if token is None]
        if missing:
            raise UserError(
                f'config.chat is {name!r}, but the tokenizer has no {" and no ".join(missing)}; take the format of its '
                "family, or '' for plain text.")
        self.vocab_size = max(tokenizer.vocab_size, 1 + max(self._special.values()))
        self.pad_token = tokenizer.pad_token
        self.begin_tokens = tokenizer.begin_tokens
        self.close_token = self._special[self.format.end]
        others = [token for token in tokenizer.end_tokens if token != self.close_token]
        self.end_tokens = (self.close_token, *others)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special tokens added."""
        return self._tokenizer.encode(text)

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens, those of the format among them, have none."""
        return self._tokenizer.decode([token for token in tokens if token not in self._special.values()])

    def prompt(self, text: str) -> list[int]:
        """The opening, `text` as the user's turn, and what opens the model's."""
        opening = [] if self._system is None else self._tokens(self.format.turn('system'), self._system)
        return [*self.begin_tokens, *opening, *self._asked('', text)]

    def instruction(self, text: str) -> list[int]:
        """What stands behind the end token of a response: `text` as the user's turn, and what opens the model's."""
        return self._asked(self.format.after, text)

    def _asked(self, before: str, text: str) -> list[int]:
        layout = before + self.format.turn('user') + self.format.opened(self.format.model)
        return self._tokens(layout, text.strip())

    def _tokens(self, layout: str, text: str) -> list[int]:
        """Those of `layout`, in which {text} is `text`: special tokens are those of the layout alone."""
        tokens = []
        for part in _SPECIAL.split(layout):
            tokens += [self._special[part]] if part in self._special else self.encode(part.replace('{text}', text))
        return tokens


def chat(tokenizer: SentencePiece | HuggingFace, name: str, directory: Path) -> Chat:
    """A chat in the format `name`, which gives the tokens that the template in `directory` gives, if there is one.

    Raises:
      UserError: no such format, one that the tokenizer lacks the tokens of, or one that the template does not follow,
        such as a template that rewrites the earlier turns.
    """
    plain = Chat(tokenizer, name)
    found = template(directory)
    if not found:
        return plain
    file, source = found
    form, question, again = plain.format, 'What is  2 + 3?', 'Look\n\nagain. é 🙂'
    asked = form.turn('user') + form.opened(form.model)

    def rendered(*turns: str) -> str:
        """The conversation as the template has it, the model's next turn open."""
        roles = ('user', 'assistant')
        messages = [{'role': roles[i % 2], 'content': text} for i, text in enumerate(turns)]
        try:
            return _render(source, messages, tokenizer.begin_text)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(
                f"{file} cannot be rendered ({error}); mend it, or use --config.chat='' for plain text.") from None

    def refuse(ours: str, theirs: str) -> UserError:
        at = len(os.path.commonprefix([ours, theirs]))
        start = max(at - 20, 0)
        return UserError(
            f'{file} lays out a chat in another way than config.chat = {name!r}: it has {theirs[start:at + 40]!r}, and '
            f"the format {ours[start:at + 40]!r}; use the format of its family, or --config.chat='' for plain text.")

    one = rendered(question)
    tail = asked.replace('{text}', question)
    opening = one.removesuffix(tail).removeprefix(tokenizer.begin_text)
    before, _, behind = form.turn('system').partition('{text}')
    system = opening.removeprefix(before).removesuffix(behind) if opening else None
    known = tokenizer.begin_text + (before + system + behind if opening else '')
    if not one.endswith(tail):
        raise refuse(tail, one[max(one.find(form.opened('user')), 0):])
    if one != known + tail or _SPECIAL.search(system or ''):
        raise refuse(tokenizer.begin_text + before + '...' + behind + tail, one)
    made = Chat(tokenizer, name, system)
    if tokenizer.parse(one) != made.prompt(question):
        raise UserError(
            f'{file} gives other tokens than config.chat = {name!r} for the same text; set config.tokenizer to its '
            'own.')
    between = form.end + form.after + asked.replace('{text}', again)
    for answer in ('It is  5.', '<think>\nTwo, three.\n</think>\n\nIt is 5.'):
        ours, theirs = one + answer + between, rendered(question, answer, again)
        if theirs != ours and not (form.drops_thoughts and theirs == one + _THOUGHTS.sub('', answer) + between):
            raise refuse(ours, theirs)
    return made


def suited(tokenizer: SentencePiece | HuggingFace, directory: Path) -> str:
    """The name of the format that a model with a chat template has the tokens of; '' without template or tokens."""
    def has(form: Format) -> bool:
        return all(tokenizer.special_token(name) is not None for name in _SPECIAL.findall(form.turn('user')))

    return next((name for name, form in FORMATS.items() if template(directory) and has(form)), '')


def template(directory: Path) -> tuple[Path, str] | None:
    """The chat template of a model and the file that has it; None if there is none."""
    file = directory / 'chat_template.jinja'
    if file.exists():
        return file, file.read_text()
    for name in ('chat_template.json', 'tokenizer_config.json'):
        try:
            found = json.loads((directory / name).read_text())['chat_template']
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if isinstance(found, list):  # several by name, such as one with tools
            found = next((entry['template'] for entry in found if entry['name'] == 'default'), None)
        if found:
            return directory / name, found
    return None


def _render(source: str, messages: list[dict], begin: str) -> str:
    """As `transformers` renders it, but that there is no clock: a prompt must not change from one day to the next."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters['tojson'] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    return environment.from_string(source).render(
        messages=messages, add_generation_prompt=True, bos_token=begin, raise_exception=raise_exception)
