"""Programs from words: MBPP to train on, HumanEval to measure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from score_jax.errors import UserError
from score_jax.tasks.text import TextConfig, TextProblem, TextTask
from score_jax.tokenizers import Tokenizer

GRADER = 'score_jax.rewards.code:grade_job'
_EXAMPLES = range(1, 11)  # ids of MBPP that its authors set aside for prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeConfig(TextConfig):
    """`config.task` of MBPP and HumanEval; `configs/tasks.py` has the comments."""

    data_dir: str
    examples: tuple[int, ...]
    shown_tests: int
    layers: tuple[str, ...]

    def __post_init__(self):
        super().__post_init__()
        for example in self.examples:
            if example not in _EXAMPLES:
                raise UserError(
                    f'config.task.examples is {self.examples}; MBPP sets its problems 1 to 10 aside for prompts, and '
                    'every other one is trained or measured on.')
        if not 1 <= self.shown_tests <= 3:
            raise UserError(
                f'config.task.shown_tests is {self.shown_tests}; it must be 1, 2 or 3, as MBPP has 3 tests.')


def mbpp(config: CodeConfig, tokenizer: Tokenizer | None) -> TextTask:
    """MBPP by the ids of its authors, and HumanEval as the split `humaneval`."""
    splits = {split: functools.partial(_mbpp, split, config) for split in ('train', 'validation', 'test')}
    return _task(config, tokenizer, splits | {'humaneval': functools.partial(_humaneval, config)})


def humaneval(config: CodeConfig, tokenizer: Tokenizer | None) -> TextTask:
    """HumanEval, which has problems to test alone."""
    return _task(config, tokenizer, {'test': functools.partial(_humaneval, config)})


def _task(config: CodeConfig, tokenizer: Tokenizer | None, splits: Mapping) -> TextTask:
    from score_jax.rewards import sandbox
    sandbox.require(config.layers)
    return TextTask(config, tokenizer, splits=splits, grader=GRADER)


def _load(name: str, split: str, config: CodeConfig) -> list[dict]:
    from score_jax.tasks import builders  # here, since it imports tensorflow_datasets
    return builders.load(name, split, config.data_dir)


def _mbpp(split: str, config: CodeConfig) -> list[TextProblem]:
    before = _solved_examples(config)
    return [
        TextProblem(
            record['id'], before + _statement(record, config),
            {'tests': record['tests'], 'setup': record['setup']})
        for record in _load('mbpp', split, config)]


def _humaneval(config: CodeConfig) -> list[TextProblem]:
    return [
        TextProblem(
            record['id'], f'Complete this function.\n\n{record["problem"].strip()}',
            {'check': record['check'], 'entry_point': record['entry_point'], 'prompt': record['problem']})
        for record in _load('humaneval', 'test', config)]


def _statement(record: Mapping, config: CodeConfig) -> str:
    """The sentence and the tests that the model may see; it is graded by all of them."""
    return '\n'.join([record['problem'], *record['tests'][:config.shown_tests]])


def _solved_examples(config: CodeConfig) -> str:
    """MBPP's own examples with their programs, as they stand before every problem of it."""
    known = {int(record['id']): record for record in _load('mbpp', 'prompt', config)} if config.examples else {}
    return ''.join(
        f'{_statement(known[example], config)}\n\n```python\n{known[example]["solution"].strip()}\n```\n\n'
        for example in config.examples)
