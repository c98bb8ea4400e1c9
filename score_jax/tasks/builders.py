"""TFDS builders of the public data sets; they need no TensorFlow, neither to build nor to read.

Each reads the files as their authors publish them: from `manual_dir` where there is one, else from the official
address. What comes out is array_record, an example a problem, all values text:

    id, problem, solution    and, of mathematics:  answer, level, subject    of code:  tests, setup | check, entry_point

Importing this file imports tensorflow_datasets; only tasks that read such a data set do.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from score_jax.errors import UserError
from score_jax.tasks.files import read_records

_GITHUB = 'https://raw.githubusercontent.com'  # at a commit, which fixes the content, where the files are at rest
_GSM8K = f'{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c'
_HUMANEVAL = f'{_GITHUB}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d'
# Files under Git LFS; the commit fixes their content.
_PRM800K = 'https://media.githubusercontent.com/media/openai/prm800k/7ecc794703b2877f63226f2477a49b34f9b25163/prm800k'


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the data sets share: where files are, how a split is checked."""

    VERSION = tfds.core.Version('1.0.0')
    FIELDS: tuple[str, ...]
    LISTS: tuple[str, ...] = ()  # fields that hold several texts
    SIZES: Mapping[str, int]  # problems of every split
    FILES: tuple[str, ...]  # in `manual_dir`
    URLS: tuple[str, ...]  # on a connected machine, what `FILES` are
    HOME: str

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:
        return f'{", ".join(self.FILES)}, from {self.HOME}'

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {field: text for field in self.FIELDS}
        features |= {field: tfds.features.Sequence(text) for field in self.LISTS}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), homepage=self.HOME, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # there is none
            files = [Path(path) for path in dl_manager.download(list(self.URLS))]
            splits = self._read_official(files)
        else:
            splits = self._read([folder / name for name in self.FILES])
        for split, size in self.SIZES.items():
            if len(splits[split]) != size:
                raise UserError(
                    f'the {split} split of {self.name} comes to {len(splits[split])} problems, not {size}: a file is '
                    f'not whole; fetch {", ".join(self.FILES)} again from {self.HOME}')
        return {split: self._generate_examples(problems) for split, problems in splits.items()}

    def _generate_examples(self, problems):
        for number, problem in enumerate(problems):
            yield number, problem

    @abc.abstractmethod
    def _read(self, files: list[Path]) -> dict[str, list[dict]]:
        """The problems by split, from `FILES`."""

    def _read_official(self, files: list[Path]) -> dict[str, list[dict]]:
        """The same from what `URLS` give."""
        return self._read(files)


class Gsm8k(_Builder):
    """Grade-school word problems (Cobbe et al. 2021): 7,473 to train, 1,319 to test."""

    name = 'score_gsm8k'
    FIELDS = ('id', 'problem', 'solution', 'answer')
    SIZES = {'train': 7473, 'test': 1319}
    FILES = ('gsm8k/train.jsonl', 'gsm8k/test.jsonl')
    HOME = 'https://github.com/openai/grade-school-math'
    URLS = tuple(f'{_GSM8K}/grade_school_math/data/{split}.jsonl' for split in ('train', 'test'))

    def _read(self, files):
        return {
            split: [
                {'id': f'{split}/{number}', 'problem': record['question'], 'solution': record['answer'],
                 'answer': record['answer'].split('####')[-1].strip()}
                for number, record in enumerate(read_records(path, ('question', 'answer')))]
            for split, path in zip(('train', 'test'), files)}


class Math(_Builder):
    """MATH (Hendrycks et al. 2021) in the split of Lightman et al. 2023: 12,000 to train, MATH500 to test.

    The training problems are the 7,500 of MATH and those 4,500 of its test problems that MATH500 leaves, told apart by
    unique_id. None of MATH500 occurs among them under another id; four problems of MATH occur twice in training.
    """

    name = 'score_math'
    FIELDS = ('id', 'problem', 'solution', 'answer', 'level', 'subject')
    SIZES = {'train': 12_000, 'test': 500}
    FILES = ('math/train.jsonl', 'math/test.jsonl', 'math/math500.jsonl')
    HOME = 'https://github.com/openai/prm800k'
    URLS = (f'{_PRM800K}/math_splits/train.jsonl', f'{_PRM800K}/math_splits/test.jsonl')

    def _read(self, files):
        train, test, held_out = (list(self._problems(path)) for path in files)
        ids = {problem['id'] for problem in held_out}
        return {'train': [problem for problem in train + test if problem['id'] not in ids], 'test': held_out}

    def _read_official(self, files):
        return {split: list(self._problems(path)) for split, path in zip(('train', 'test'), files)}

    def _problems(self, path: Path) -> Iterator[dict]:
        for record in read_records(path, ('unique_id', 'problem', 'solution', 'answer', 'level', 'subject')):
            yield {
                'id': record['unique_id'].removesuffix('.json'), 'problem': record['problem'],
                'solution': record['solution'], 'answer': record['answer'],
                'level': str(record['level']).removeprefix('Level ').strip(), 'subject': record['subject']}


class Mbpp(_Builder):
    """Python programs from a sentence and tests (Austin et al. 2021): 974, split by id as their authors do.

    Three sentences of `test` stand in `train` too, with other tests: 216 and 872, 217 and 602, 248 and 704.
    """

    name = 'score_mbpp'
    FIELDS = ('id', 'problem', 'solution', 'setup')
    LISTS = ('tests',)
    SIZES = {'prompt': 10, 'test': 500, 'validation': 90, 'train': 374}
    FILES = ('mbpp/mbpp.jsonl',)
    HOME = 'https://github.com/google-research/google-research/tree/master/mbpp'
    URLS = (f'{_GITHUB}/google-research/google-research/master/mbpp/mbpp.jsonl',)
    _LAST = {'prompt': 10, 'test': 510, 'validation': 600, 'train': 974}  # ids up to this

    def _read(self, files):
        splits = {split: [] for split in self.SIZES}
        for record in read_records(files[0], ('task_id', 'text', 'code', 'test_list', 'test_setup_code')):
            split = next((split for split, last in self._LAST.items() if record['task_id'] <= last), 'train')
            splits[split].append({
                'id': str(record['task_id']), 'problem': record['text'].strip(),
                'solution': record['code'].replace('\r\n', '\n'), 'tests': record['test_list'],
                'setup': record['test_setup_code'].replace('\r\n', '\n')})
        return splits


class HumanEval(_Builder):
    """Python functions from their docstrings (Chen et al. 2021): 164, to test alone."""

    name = 'score_humaneval'
    FIELDS = ('id', 'problem', 'solution', 'entry_point', 'check')
    SIZES = {'test': 164}
    FILES = ('humaneval/HumanEval.jsonl.gz',)
    HOME = 'https://github.com/openai/human-eval'
    URLS = (f'{_HUMANEVAL}/data/HumanEval.jsonl.gz',)

    def _read(self, files):
        fields = ('task_id', 'prompt', 'canonical_solution', 'test', 'entry_point')
        return {'test': [
            {'id': record['task_id'], 'problem': record['prompt'], 'solution': record['canonical_solution'],
             'entry_point': record['entry_point'], 'check': record['test']}
            for record in read_records(files[0], fields)]}


BUILDERS = {'gsm8k': Gsm8k, 'math': Math, 'mbpp': Mbpp, 'humaneval': HumanEval}


def load(name: str, split: str, data_dir: str) -> list[dict]:
    """The problems of a split, in the order of their files.

    Args:
      data_dir: the folder that has the builder's `FILES`; '' downloads them, once.

    Raises:
      UserError: a folder or file that is not there or not whole, or no connection, with what would help.
    """
    builder_class = BUILDERS[name]
    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise UserError(
            f'config.task.data_dir is {data_dir!r}, which is no folder; it must hold {", ".join(builder_class.FILES)}, '
            "or be '' to download them.")
    folder = Path(data_dir).expanduser()
    with _quiet():
        builder = builder_class(
            data_dir=_prepared(builder_class, folder if data_dir else None), file_format='array_record')
        if not builder.is_prepared():
            _prepare(builder, folder if data_dir else None)
        source = builder.as_data_source(split)
    return [_text(example) for example in source.__getitems__(range(len(source)))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TFDS and its libraries print to themselves; what a user must know comes as an error."""
    loggers = [logging.getLogger(name) for name in ('absl', 'urllib3')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _prepared(builder_class, folder: Path | None) -> Path:
    """Where the prepared data set lies: a place for each content of its files, so that none is taken for another."""
    root = Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
    if folder is None:
        return root / 'downloaded'
    digest = hashlib.sha256()
    for name in builder_class.FILES:
        try:
            digest.update((folder / name).read_bytes())
        except OSError as error:
            raise UserError(
                f'{folder / name} cannot be read ({error.strerror}); config.task.data_dir must hold '
                f'{", ".join(builder_class.FILES)} from {builder_class.HOME}') from None
    return root / digest.hexdigest()[:16]


def _prepare(builder, folder: Path | None) -> None:
    """Writes the data set; `manual_dir` is `folder`, and without one the files are downloaded."""
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    except (OSError, tfds.download.DownloadError) as error:  # OSError: also what `requests` raises
        if builder.is_prepared():  # by another process, a moment ago
            return
        files = ', '.join(builder.FILES)
        if folder is None:
            raise UserError(
                f'{builder.URLS[0]} cannot be downloaded ({type(error).__name__}); put {files} from {builder.HOME} '
                'into a folder and name it in config.task.data_dir.') from None
        raise UserError(
            f'{builder.data_path} cannot be written ({error}); let the environment variable TFDS_DATA_DIR be a folder '
            'that can.') from None


def _text(example: dict) -> dict:
    """An example with `str` for bytes."""
    return {
        key: [item.decode() for item in value] if isinstance(value, (list, np.ndarray)) else value.decode()
        for key, value in example.items()}
