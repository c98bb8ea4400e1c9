"""Tasks in words: splits have the sizes of the papers and do not leak, prompts tell no verdict, bad files are named."""

import ast
import gzip
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from configs import tasks as configs
from score_jax import tasks
from score_jax.errors import UserError
from score_jax.rewards import Outcome, Verdict, maths
from score_jax.tasks import builders, text
from score_jax.tasks.files import read_records

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'the public data sets are not in {DATA}')
SIZES = {
    'gsm8k': {'train': 7473, 'test': 1319}, 'math': {'train': 12_000, 'test': 500},
    'mbpp': {'train': 374, 'validation': 90, 'test': 500, 'humaneval': 164}, 'humaneval': {'test': 164}}


@pytest.fixture(scope='session', autouse=True)
def prepared(tmp_path_factory):
    """What TFDS prepares goes to a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
        yield


def section(name: str, **changes) -> dict:
    values = configs.TASKS[name] | {'max_prompt': 100_000}
    if 'layers' in values:
        values['layers'] = ()  # no program is run here
    if 'data_dir' in values:
        values['data_dir'] = str(DATA)
    return values | changes


@pytest.fixture(scope='session')
def made():
    """Each public task, its data loaded once."""
    return {name: tasks.make(section(name)) for name in SIZES}


def problems(made, name: str, split: str) -> list:
    return made[name].problems(split, SIZES[name][split], seed=0, step=0)


def bare(problem: str) -> str:
    """Letters, digits and symbols alone: what a problem is, however it is set."""
    return re.sub(r'\s+', '', problem).lower()


@needs_data
@pytest.mark.parametrize('name, split', [(name, split) for name, splits in SIZES.items() for split in splits])
def test_every_split_has_the_size_of_the_paper_and_each_problem_once(made, name, split):
    size = SIZES[name][split]
    assert len({problem.id for problem in problems(made, name, split)}) == size
    with pytest.raises(UserError, match=f'config.problems is {size + 1}, but the {split} split has {size}'):
        made[name].distinct_problems(split, size + 1, seed=0)


@needs_data
@pytest.mark.parametrize('name, measured', [
    ('gsm8k', 'test'), ('math', 'test'), ('mbpp', 'humaneval'), ('mbpp', 'test')])
def test_nothing_that_is_measured_is_trained_on(made, name, measured):
    train, test = problems(made, name, 'train'), problems(made, name, measured)
    assert not {problem.id for problem in train} & {problem.id for problem in test}
    assert not {bare(problem.text) for problem in train} & {bare(problem.text) for problem in test}


@needs_data
def test_what_mbpp_itself_has_in_training_and_in_test_is_known_and_no_more():
    """HumanEval is what the paper measures on; these matter to whoever measures on MBPP's own test."""
    train, test = ({bare(record['problem']): record['id'] for record in builders.load('mbpp', split, str(DATA))}
                   for split in ('train', 'test'))
    assert sorted((test[same], train[same]) for same in train.keys() & test.keys()) == [
        ('216', '872'), ('217', '602'), ('248', '704')]


@needs_data
def test_math_is_trained_on_what_math500_leaves(made):
    ids = [json.loads(line)['unique_id'].removesuffix('.json') for line in (DATA / 'math/math500.jsonl').open()]
    assert [problem.id for problem in sorted(problems(made, 'math', 'test'), key=lambda p: ids.index(p.id))] == ids
    train = {problem.id: problem for problem in problems(made, 'math', 'train')}
    assert sum(id.startswith('train/') for id in train) == 7500 and sum(id.startswith('test/') for id in train) == 4500
    twins = bare(train['test/precalculus/24307'].text), bare(train['train/geometry/6032'].text)
    assert twins[0] == twins[1]  # known, and both on the side of training


@needs_data
def test_the_known_holes_of_math_are_filled(made):
    train = {problem.id: problem for problem in problems(made, 'math', 'train')}
    assert [train[f'train/number_theory/{n}'].job['gold'] for n in (7115, 7117)] == ['0', '0']
    assert all(problem.job['gold'].strip() for problem in train.values())
    levels = {problem.groups['level'] for problem in train.values()}
    assert levels == {'1', '2', '3', '4', '5', '?'} and len({p.groups['subject'] for p in train.values()}) == 7


@needs_data
def test_mbpp_is_split_by_the_ids_of_its_authors(made):
    ids = {split: {int(p.id) for p in problems(made, 'mbpp', split)} for split in ('train', 'validation', 'test')}
    assert ids == {'train': {*range(601, 975)}, 'validation': {*range(511, 601)}, 'test': {*range(11, 511)}}


@needs_data
def test_a_problem_of_code_says_what_its_function_is_called(made):
    for split in ('train', 'validation', 'test'):
        for problem in problems(made, 'mbpp', split):
            assert len(problem.job['tests']) >= 3 and problem.job['tests'][0] in problem.text
    for problem in problems(made, 'humaneval', 'test'):
        assert f'def {problem.job["entry_point"]}(' in problem.text and 'def check(' in problem.job['check']


@needs_data
def test_solved_examples_are_those_that_mbpp_sets_aside(made):
    problem = made['mbpp'].problems('train', 1, seed=0, step=0)[0]
    assert problem.text.count('```python') == 3 and 'similar_elements' in problem.text
    blocks = re.findall(r'```python\n(.*?)```', problem.text, re.DOTALL)
    assert all(ast.parse(block) for block in blocks)
    plain = tasks.make(section('mbpp', examples=())).problems('train', 1, seed=0, step=0)[0]
    assert '```' not in plain.text and problem.text.endswith(plain.text)
    with pytest.raises(UserError, match=r'config.task.examples is \(11,\)'):
        tasks.make(section('mbpp', examples=(11,)))


@needs_data
def test_problems_without_tensorflow_and_countdown_without_tfds():
    code = ('import sys; from score_jax import tasks; from configs import common, tasks as t;'
            'tasks.make(common.shared().task); assert "tensorflow_datasets" not in sys.modules;'
            f'tasks.make(t.TASKS["gsm8k"] | {{"data_dir": {str(DATA)!r}}}).problems("test", 3, seed=0, step=0);'
            'assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules')
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


# A file of one's own.


@pytest.fixture
def own(tmp_path) -> dict:
    """`config.task` of ten sums, with levels."""
    path = tmp_path / 'sums.jsonl'
    path.write_text(''.join(
        json.dumps({'problem': f'{n} + {n}?', 'answer': str(2 * n), 'level': n % 2}) + '\n' for n in range(10)))
    return section('jsonl', train=str(path), test=str(path))


@pytest.fixture
def sums(own):
    return tasks.make(own)


def test_an_epoch_has_every_problem_once_and_the_next_another_order(sums):
    order = [p.id for step in range(10) for p in sums.problems('train', 3, seed=0, step=step)]
    epochs = [order[start:start + 10] for start in (0, 10, 20)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_data_position_is_a_function_of_seed_and_step_alone(own, sums):
    drawn = [sums.problems('train', 4, seed=0, step=step) for step in range(8)]
    again = tasks.make(own)
    assert again.problems('train', 4, seed=0, step=7) == drawn[7]
    assert again.problems('train', 4, seed=0, step=2) == drawn[2]
    assert [sums.problems('train', 4, seed=1, step=step) for step in range(8)] != drawn


def test_a_batch_may_be_larger_than_an_epoch(sums):
    batch = [problem.id for problem in sums.problems('train', 25, seed=0, step=0)]
    assert sorted(batch[:10]) == sorted(batch[10:20]) and len(set(batch)) == 10


def test_what_is_measured_are_different_problems(sums):
    assert len({problem.id for problem in sums.distinct_problems('test', 10, seed=0)}) == 10
    assert sums.distinct_problems('test', 4, seed=0) == sums.distinct_problems('test', 10, seed=0)[:4]


def test_problems_with_long_prompts_are_left_out_and_counted(own, capsys):
    path = Path(own['train'])
    path.write_text(path.read_text() + json.dumps({'problem': 'x' * 500, 'answer': '1'}) + '\n')
    task = tasks.make(own | {'max_prompt': 300})
    assert len(task.distinct_problems('test', 10, seed=0)) == 10
    assert '1 of 11 problems are left out' in capsys.readouterr().out
    assert task.longest_prompt('test') == max(
        len(tasks.prompt_tokens(task, problem)) for problem in task.distinct_problems('test', 10, seed=0)) <= 300
    with pytest.raises(UserError, match='config.task.max_prompt is 50, but none of the 11 prompts'):
        tasks.make(own | {'max_prompt': 50}).problems('train', 1, seed=0, step=0)


def test_the_grader_gets_the_gold_and_the_response_in_order(sums, monkeypatch):
    jobs = []

    class FakePool:
        def __init__(self, function, *, workers, limits):
            assert function == 'score_jax.rewards.maths:grade_job' and workers == 2
            assert limits.wall_seconds == configs.TASKS['jsonl']['seconds'] <= maths.LIMITS.wall_seconds
            assert limits.memory_bytes <= maths.LIMITS.memory_bytes

        def map(self, given):
            jobs.extend(given)
            return [Verdict(Outcome.CORRECT if job['gold'] == job['response'] else Outcome.WRONG) for job in given]

    monkeypatch.setattr(text, 'Pool', FakePool)
    drawn = sums.distinct_problems('test', 3, seed=0)
    golds = [problem.job['gold'] for problem in drawn]
    verdicts = sums.verify(drawn, [golds[0], 'no', golds[2]])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT]
    assert [job['gold'] for job in jobs] == golds and all(job['form'] == 'boxed' for job in jobs)


@pytest.mark.parametrize('grade, right', [('maths', True), ('exact', False)])
def test_an_answer_of_ones_own_is_graded_in_value_or_letter_for_letter(own, grade, right):
    task = tasks.make(own | {'grade': grade})
    problem = task.distinct_problems('test', 10, seed=0)[0]
    gold = problem.job['gold']
    answers = [rf'It is \boxed{{{gold}}}.', rf'It is \boxed{{{gold}.0}}.', rf'\boxed{{{gold}9}}', gold]
    outcomes = [verdict.outcome for verdict in task.verify([problem] * 4, answers)]
    assert outcomes == [
        Outcome.CORRECT, Outcome.CORRECT if right else Outcome.WRONG, Outcome.WRONG, Outcome.NO_ANSWER]


def test_levels_of_ones_own_are_groups(sums):
    assert {sums.groups(problem)['level'] for problem in sums.distinct_problems('test', 10, seed=0)} == {'0', '1'}


# What cannot be meant.


@pytest.mark.parametrize('lines, message', [
    ('{"problem": "1 + 1", "answer": "2"}\n{"problem": "2 + 2"\n', 'line 2 is no JSON object'),
    ('[1, 2]\n', 'line 1 is no JSON object'),
    ('{"problem": "1 + 1"}\n', "line 1 has no field 'answer', only 'problem'"),
    ('\n', 'holds no problem'),
    (b'\xff\xfe\x00', 'cannot be read'),
])
def test_a_file_with_a_mistake_is_refused_with_the_line(own, lines, message):
    path = Path(own['train'])
    path.write_bytes(lines) if isinstance(lines, bytes) else path.write_text(lines)
    with pytest.raises(UserError, match=message) as error:
        tasks.make(own).problems('train', 1, seed=0, step=0)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name, changes, message', [
    ('jsonl', dict(train='nowhere.jsonl'), r'nowhere\.jsonl cannot be read \(No such file'),
    ('jsonl', dict(train=''), "config.task.train is ''"),
    ('gsm8k', dict(data_dir='nowhere'), "config.task.data_dir is 'nowhere', which is no folder"),
    ('math', dict(data_dir=str(ROOT / 'tests')), r'math/train\.jsonl cannot be read .* config.task.data_dir must hold'),
])
def test_missing_data_is_named_with_the_way_out(name, changes, message):
    with pytest.raises(UserError, match=message):
        tasks.make(section(name, **changes)).problems('train', 1, seed=0, step=0)


@needs_data
def test_a_data_set_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / 'gsm8k').mkdir()
    for split in ('train', 'test'):
        lines = (DATA / f'gsm8k/{split}.jsonl').read_text().splitlines(keepends=True)
        (tmp_path / f'gsm8k/{split}.jsonl').write_text(''.join(lines[:100]))
    with pytest.raises(UserError, match='the train split of score_gsm8k comes to 100 problems, not 7473'):
        tasks.make(section('gsm8k', data_dir=str(tmp_path))).problems('train', 1, seed=0, step=0)


@pytest.mark.parametrize('changes, message', [
    (dict(prompt='Solve it.'), 'config.task.prompt is'),
    (dict(prompt='{problem} {problem}'), 'config.task.prompt is'),
    (dict(instruction=' '), 'config.task.instruction is empty'),
    (dict(instruction='That was {verdict}. Again:'), r'config.task.instruction has the field \{verdict\}'),
    (dict(form='circled'), "config.task.form is 'circled'; it must be one of boxed"),
    (dict(grade='guess'), "config.task.grade is 'guess'"),
    (dict(max_prompt=0), 'config.task.max_prompt is 0'),
    (dict(workers=0), 'config.task.workers is 0'),
    (dict(seconds=0.0), 'config.task.seconds is 0.0'),
    (dict(colour='red'), 'config.task.colour is not a key'),
])
def test_a_value_that_cannot_work_is_refused(own, changes, message):
    with pytest.raises(UserError, match=message):
        tasks.make(own | changes)


def test_an_unknown_split_and_an_unknown_task_are_named(sums):
    with pytest.raises(UserError, match="split is 'dev'; this task has train, test"):
        sums.problems('dev', 1, seed=0, step=0)
    with pytest.raises(UserError, match="config.task.name is 'chess'; it must be one of countdown, gsm8k"):
        tasks.make({'name': 'chess'})


def test_code_needs_the_layers_that_its_config_demands():
    with pytest.raises(UserError, match='moat'):
        tasks.make(section('mbpp', layers=('moat',)))


def test_the_instructions_are_the_same_text_for_right_and_wrong():
    for name, values in configs.TASKS.items():
        assert 'may be right' in values['instruction'], name
        assert not re.search(r'\{\w*\}', values['instruction']), name


def test_records_may_be_compressed(tmp_path):
    path = tmp_path / 'a.jsonl.gz'
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert [record['a'] for record in read_records(path, ('a',))] == [1, 2]


def test_the_task_of_the_documentation_is_one(monkeypatch):
    page = (ROOT / 'docs' / 'tasks.md').read_text()
    code = re.search(r'```python\n(# reverse\.py\n.*?)```', page, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    names: dict = {'__name__': 'reverse'}
    monkeypatch.setitem(sys.modules, 'reverse', types.ModuleType('reverse'))  # where dataclasses looks
    exec(code, names)
    monkeypatch.setitem(tasks.TASKS, 'reverse', (names['Reverse'], names['Reverse'].Config))
    task = tasks.make({'name': 'reverse', 'length': 4, 'instruction': ' again: '})
    train, test = task.problems('train', 500, seed=0, step=3), task.distinct_problems('test', 20, seed=0)
    assert train == task.problems('train', 500, seed=0, step=3) != task.problems('train', 500, seed=0, step=4)
    assert len(set(test)) == 20 and not set(train) & set(test)
    assert task.longest_prompt('test') == len(tasks.prompt_tokens(task, test[0]))
    verdicts = task.verify(test[:2], [test[0][::-1], test[0]])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.WRONG]
    members = {name for name in vars(tasks.Task) if not name.startswith('_')} | set(tasks.Task.__annotations__)
    assert all(hasattr(task, name) for name in members)


@pytest.mark.parametrize('answer, right, wrong', [
    ('1e-7', r'\boxed{10^{-7}}', r'\boxed{1}'), ('12', r'\boxed{12}', r'\boxed{13}'),
    ('0.5', r'\boxed{1/2}', r'\boxed{5}')])
def test_an_answer_may_be_a_number_of_json(own, answer, right, wrong):
    Path(own['test']).write_text(f'{{"problem": "?", "answer": {answer}}}\n')
    task = tasks.make(own)
    (problem,) = task.distinct_problems('test', 1, seed=0)
    verdicts = task.verify([problem] * 2, [right, wrong])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.WRONG]


@pytest.mark.parametrize('line, sentence', [
    ('{"problem": "?", "answer": null}', 'problem 1 of .* has the answer None'),
    ('{"problem": "?", "answer": [1, 2]}', r'problem 1 of .* has the answer \[1, 2\]'),
    ('{"problem": "?", "answer": " "}', "problem 1 of .* has the answer ' '"),
    ('{"problem": "?", "answer": NaN}', 'problem 1 of .* has the answer nan'),
    ('{"problem": null, "answer": 1}', 'problem 1 of .* is None')])
def test_what_can_be_no_gold_or_problem_is_refused(own, line, sentence):
    Path(own['test']).write_text(line + '\n')
    with pytest.raises(UserError, match=sentence):
        tasks.make(own).distinct_problems('test', 1, seed=0)


@pytest.mark.parametrize('braces', [r'\boxed{}', r'\boxed{answer}', '{ }'])
def test_an_instruction_may_have_braces_that_are_no_field(own, braces):
    assert tasks.make(own | {'instruction': f'Again, in {braces}:'}).instruction.endswith(f'{braces}:')
