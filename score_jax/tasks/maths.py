"""Mathematics in words: GSM8K, MATH, and a file of your own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from decimal import Decimal
from math import isfinite
from pathlib import Path

from score_jax.errors import UserError
from score_jax.rewards.maths import extract
from score_jax.tasks.files import read_records
from score_jax.tasks.text import TextConfig, TextProblem, TextTask
from score_jax.tokenizers import Tokenizer

GRADER = 'score_jax.rewards.maths:grade_job'
GRADES = {'maths': GRADER, 'exact': 'score_jax.rewards.exact:grade_job'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MathsConfig(TextConfig):
    """`config.task` of GSM8K and MATH; `form` is where in a response the answer stands."""

    data_dir: str
    form: str

    def __post_init__(self):
        super().__post_init__()
        _check_form(self.form)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlConfig(TextConfig):
    """`config.task` of a file of your own."""

    train: str
    test: str
    grade: str
    form: str

    def __post_init__(self):
        super().__post_init__()
        _check_form(self.form)
        if self.grade not in GRADES:
            raise UserError(f'config.task.grade is {self.grade!r}; it must be one of {", ".join(GRADES)}.')


def _check_form(form: str) -> None:
    if form not in extract.FORMS:
        raise UserError(f'config.task.form is {form!r}; it must be one of {", ".join(extract.FORMS)}.')


def gsm8k(config: MathsConfig, tokenizer: Tokenizer | None) -> TextTask:
    """Grade-school word problems."""
    return _of_builder('gsm8k', config, tokenizer, lambda record: (record['answer'], {}))


def math(config: MathsConfig, tokenizer: Tokenizer | None) -> TextTask:
    """MATH in the paper's split: 12,000 problems to train, MATH500 to test."""
    return _of_builder('math', config, tokenizer, lambda record: (
        extract.gold(record['solution']), {'level': record['level'], 'subject': record['subject']}))


def jsonl(config: JsonlConfig, tokenizer: Tokenizer | None) -> TextTask:
    """Problems from files of one JSON object a line, with `problem`, `answer` and, if you like, `level`."""
    splits = {
        split: functools.partial(_read_own, split, path, config.form)
        for split, path in (('train', config.train), ('test', config.test))}
    return TextTask(config, tokenizer, splits=splits, grader=GRADES[config.grade])


def _of_builder(name: str, config: MathsConfig, tokenizer: Tokenizer | None, gold_and_groups: Callable) -> TextTask:
    def load(split: str) -> list[TextProblem]:
        from score_jax.tasks import builders  # here, since it imports tensorflow_datasets
        problems = []
        for record in builders.load(name, split, config.data_dir):
            gold, groups = gold_and_groups(record)
            problems.append(TextProblem(record['id'], record['problem'], {'gold': gold, 'form': config.form}, groups))
        return problems

    splits = {split: functools.partial(load, split) for split in ('train', 'test')}
    return TextTask(config, tokenizer, splits=splits, grader=GRADER)


def _read_own(split: str, path: str, form: str) -> list[TextProblem]:
    if not path:
        raise UserError(
            f"config.task.{split} is ''; name a file of one JSON object a line, with 'problem' and 'answer' in each.")
    problems = []
    for number, record in enumerate(read_records(Path(path).expanduser(), ('problem', 'answer')), 1):
        where, text = f'problem {number} of {path}', record['problem']
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{where} is {text!r}; write it as text that is not empty.')
        groups = {'level': str(record['level'])} if 'level' in record else {}
        job = {'gold': _gold(record['answer'], where), 'form': form}
        problems.append(TextProblem(f'{split}/{number}', text, job, groups))
    if not problems:
        raise UserError(f'{path} (config.task.{split}) holds no problem; write one JSON object a line into it.')
    return problems


def _gold(answer, where: str) -> str:
    """An answer as text; a number without an exponent."""
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and isfinite(answer):
        return format(Decimal(repr(answer)), 'f')
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f'{where} has the answer {answer!r}; write it as text that is not empty, or as a number.')
    return answer
