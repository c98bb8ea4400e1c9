"""Evaluation: every problem once, the same figures every time, measured again when the checkpoint is another one."""

import json
import os
import shutil
from pathlib import Path

import jax
import pytest

from configs import evaluate as config_file
from score_jax import evaluate, model, report, rollout
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.grading import Attempt
from score_jax.evaluate import Evaluation
from score_jax.reinforce import sampler
from score_jax.rewards import Outcome, Verdict
from score_jax.tasks.countdown import Countdown

TINY = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16,
    'task.largest': 9, 'task.limit': 40, 'problems': 11, 'batch': 8, 'samples': 3, 'rollout.max_tokens': 5,
    'rollout.max_length': 48, 'rollout.chunk': 32, 'temperatures': (1.0, 0.0)}
NAMES = (
    't1', 't2', 'delta', 'i_to_c', 'c_to_i', 'changed', 'edit_distance', 'truncated_turn1', 'truncated_turn2',
    'no_answer_turn1', 'no_answer_turn2')
KEYS = {'n', 'delta_p', *(f'{name}{end}' for name in NAMES for end in ('', '_low', '_high'))}


def evaluation(workdir: Path, **changes) -> Evaluation:
    config = config_file.get_config()
    config.update_from_flattened_dict(TINY | changes)
    return Evaluation(config, workdir)


def save(workdir: Path, stage: str, step: int, seed: int) -> None:
    """A checkpoint of random parameters."""
    config = evaluation(Path('nowhere')).model
    checkpoints = Checkpoints(workdir / stage / 'checkpoints')
    checkpoints.save(step, {'params': jax.jit(lambda: model.initialise(config, jax.random.key(seed)))()}, meta={})
    checkpoints.close()


@pytest.fixture(scope='module')
def params():
    config = evaluation(Path('nowhere')).model
    return jax.jit(lambda: model.initialise(config, jax.random.key(0)))()


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
    """A workdir with a checkpoint of `base` and one of `stage1`."""
    workdir = tmp_path_factory.mktemp('saved') / 'w'
    save(workdir, 'base', 5, seed=0)
    save(workdir, 'stage1', 5, seed=1)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / 'w')


@pytest.fixture
def measured(monkeypatch) -> list:
    """Grows by one whenever a method is measured at a temperature; the report is left out."""
    calls, measure = [], evaluate.measure

    def counted(params, config, sampling, *args, **kwargs):
        calls.append(sampling.temperature)
        return measure(params, config, sampling, *args, **kwargs)

    monkeypatch.setattr(evaluate, 'measure', counted)
    monkeypatch.setattr(report, 'write', lambda workdir: workdir / 'report.html')
    return calls


def measure(params, *, count: int = 11, temperature: float = 1.0, seed: int = 0, batch: int = 8, each: int = 1):
    e = evaluation(Path('nowhere'))
    return evaluate.measure(
        params, e.model, sampler(e.config.rollout, e.task, 2, temperature), e.mesh, e.task, e.problems[:count],
        batch=batch, each=each, seed=seed)


def results(workdir: Path) -> list[dict]:
    return json.loads((workdir / 'results.json').read_text())


def test_the_last_batch_is_padded_and_the_padding_dropped(params, monkeypatch):
    rows, sample = [], rollout.sample

    def watched(params, config, sampling, mesh, prompts, *args, **kwargs):
        rows.append(len(prompts))
        return sample(params, config, sampling, mesh, prompts, *args, **kwargs)

    monkeypatch.setattr(rollout, 'sample', watched)
    attempts = measure(params, count=11)
    assert rows == [8, 8]
    assert [len(turn) for turn in attempts] == [11, 11]
    assert [turn[:8] for turn in attempts] == measure(params, count=8)


def test_greedy_answers_do_not_depend_on_the_batch(params):
    assert measure(params, temperature=0.0, batch=8) == measure(params, temperature=0.0, batch=16)


def test_a_measurement_is_a_function_of_the_seed(params):
    assert measure(params) == measure(params)
    assert measure(params) != measure(params, seed=1)


def test_batches_have_noise_of_their_own(params):
    e = evaluation(Path('nowhere'))
    twice = evaluate.measure(
        params, e.model, sampler(e.config.rollout, e.task, 2, 1.0), e.mesh, e.task, e.problems[:8] * 2, batch=8, seed=0)
    assert twice[0][:8] != twice[0][8:]


def test_problems_are_distinct_and_held_out():
    e = evaluation(Path('nowhere'))
    assert len(set(e.problems)) == 11
    assert set(e.problems) <= set(e.task.problems('test', 20_000, seed=0, step=0))


def attempt(outcome: Outcome) -> Attempt:
    return Attempt(str(outcome), 1, Verdict(outcome))


def test_figures_are_by_group_and_leave_out_what_could_not_be_graded():
    class Task:
        def groups(self, problem):
            return {'level': problem}

    right, wrong, failed = map(attempt, (Outcome.CORRECT, Outcome.WRONG, Outcome.SANDBOX_ERROR))
    first = [wrong, right, wrong, wrong, right, failed, failed, wrong]  # two samples of each of four problems
    second = [right, right, right, wrong, failed, wrong, right, failed]
    row = evaluate.figures(Task(), ['1', '2', '2', '1'], [first, second])
    assert (row['n'], row['dropped'], row['t1'], row['t2'], row['delta']) == (2, 4, 0.25, 0.75, 0.5)
    levels = row['by']['level']
    assert {level: (group['n'], group['t1'], group['t2']) for level, group in levels.items()} == {
        '1': (1, 0.5, 1.0), '2': (1, 0.0, 0.5)}
    with pytest.raises(UserError, match='every one of the gradings failed'):
        evaluate.figures(Task(), ['1'], [[failed], [right]])


@pytest.mark.parametrize('problems', [[{}, {'level': '3'}], [{'level': '3'}, {}]])
def test_a_problem_without_a_level_has_a_group_of_its_own_wherever_it_stands(problems):
    class Task:
        def groups(self, problem):
            return problem

    right = attempt(Outcome.CORRECT)
    levels = evaluate.figures(Task(), problems, [[right, right], [right, right]])['by']['level']
    assert {level: group['n'] for level, group in levels.items()} == {'3': 1, '?': 1}


def test_several_samples_of_a_problem_stand_side_by_side_and_differ(params):
    once, twice = measure(params), measure(params, each=3)
    assert [len(turn) for turn in twice] == [33, 33] and [len(turn) for turn in once] == [11, 11]
    assert any(twice[0][3 * i] != twice[0][3 * i + 1] for i in range(11))


def test_a_row_of_results_has_these_keys_and_no_others(workdir, measured):
    evaluation(workdir).run()
    rows = results(workdir)
    assert [(row['temperature'], row['method']) for row in rows] == [
        (1.0, 'base'), (1.0, 'stage1'), (0.0, 'base'), (0.0, 'stage1')]
    for row in rows:
        assert row.keys() == {'method', 'seed', 'temperature', 'by', 'edit_histogram'} | KEYS
        assert (row['n'], row['seed']) == (11, 0) and sum(map(sum, row['edit_histogram'].values())) == 11
        groups = row['by']['solutions']
        assert all(group.keys() == KEYS for group in groups.values())
        assert sum(group['n'] for group in groups.values()) == 11
    lines = [json.loads(line) for line in (workdir / 'evaluation' / 'samples.jsonl').read_text().splitlines()]
    assert [(line['temperature'], line['method']) for line in lines] == [
        (row['temperature'], row['method']) for row in rows for _ in range(3)]


def test_what_is_measured_already_is_not_measured_again(workdir, measured, capsys):
    evaluation(workdir).run()
    before = results(workdir)
    assert measured == [1.0, 1.0, 0.0, 0.0]
    capsys.readouterr()
    evaluation(workdir).run()
    assert len(measured) == 4 and results(workdir) == before
    assert capsys.readouterr().out.count('is measured already') == 4


def test_a_later_checkpoint_is_measured_again_and_alone(workdir, measured):
    evaluation(workdir).run()
    save(workdir, 'stage1', 6, seed=2)
    evaluation(workdir).run()
    assert measured == [1.0, 1.0, 0.0, 0.0] + [1.0, 0.0]


def test_another_checkpoint_of_the_same_step_and_time_is_measured_again(workdir, measured):
    evaluation(workdir, temperatures=(1.0,), methods=('base',)).run()
    folder = workdir / 'base' / 'checkpoints'
    time = folder.stat().st_mtime
    shutil.rmtree(folder)
    save(workdir, 'base', 5, seed=3)
    os.utime(folder, (time, time))  # as a copy that keeps times leaves it
    evaluation(workdir, temperatures=(1.0,), methods=('base',)).run()
    assert len(measured) == 2


def test_a_copy_of_a_workdir_gives_the_same_results(workdir, measured, tmp_path):
    evaluation(workdir).run()
    copied = shutil.copytree(workdir, tmp_path / 'copied')
    evaluation(copied).run()
    assert results(copied) == results(workdir)


def test_methods_without_a_checkpoint_are_left_out_and_named(workdir, measured, capsys):
    evaluation(workdir, temperatures=(0.0,)).run()
    assert 'no checkpoint of stage2' in capsys.readouterr().out
    assert [row['method'] for row in results(workdir)] == ['base', 'stage1']


def test_a_workdir_without_checkpoints_says_what_to_run_first(tmp_path):
    with pytest.raises(UserError, match=r'first run .*configs/base\.py'):
        evaluation(tmp_path / 'w').run()
    assert not (tmp_path / 'w').exists()


def test_a_stage_that_is_not_done_is_refused_before_another_is_measured(workdir, measured):
    (workdir / 'stage1' / 'config.json').write_text('{"steps": 9}')
    with pytest.raises(UserError, match="run 'stage1' to its end first"):
        evaluation(workdir).run()
    assert not measured and not (workdir / 'evaluation').exists()


def test_responses_that_are_cut_off_or_have_no_answer_are_counted_by_turn():
    class Task:
        def groups(self, problem):
            return {}

    right, cut, none = map(attempt, (Outcome.CORRECT, Outcome.TRUNCATED, Outcome.NO_ANSWER))
    row = evaluate.figures(Task(), ['1', '2'], [[right, cut], [cut, cut], [none, right]])
    assert [row[f'truncated_turn{t}'] for t in (1, 2, 3)] == [0.5, 1.0, 0.0]
    assert [row[f'no_answer_turn{t}'] for t in (1, 2, 3)] == [0.0, 0.0, 0.5]
    assert row['edit_histogram']['c->i'][-1] == 0 and sum(row['edit_histogram']['i->c']) == 1


# --- Self-Refine


def test_self_refine_asks_for_feedback_and_then_for_an_answer(workdir, measured, monkeypatch):
    """Three turns with an instruction each; the feedback is shown, graded it is not."""
    asked, verified, sample, verify = [], [], rollout.sample, Countdown.verify

    def watched(params, config, sampling, mesh, prompts, instruction, **kwargs):
        asked.append((sampling.turns, instruction))
        return sample(params, config, sampling, mesh, prompts, instruction, **kwargs)

    monkeypatch.setattr(rollout, 'sample', watched)
    monkeypatch.setattr(Countdown, 'verify', lambda *args: verified.append(len(args[2])) or verify(*args))
    e = evaluation(workdir, methods=('base', 'self_refine'), temperatures=(1.0,), problems=8, **{
        'self_refine.feedback': 'check :', 'self_refine.refine': 'make : check'})
    e.run()
    words = [e.task.tokenizer.encode(text) for text in ('check :', 'make : check')]
    assert asked == [(2, words[0]), (3, words)]
    assert len(verified) == 4  # two turns of each
    base, refined = results(workdir)
    assert refined['method'] == 'self_refine' and refined.keys() == base.keys()
    assert refined['t1'] == base['t1']  # the same answers: the same parameters, prompts and noise
    lines = [json.loads(line) for line in (workdir / 'evaluation' / 'samples.jsonl').read_text().splitlines()]
    assert all(line['instruction'] == 'make : check' and isinstance(line['feedback'], str) and len(line['turns']) == 2
               for line in lines if line['method'] == 'self_refine')
    assert not any('feedback' in line for line in lines if line['method'] == 'base')


def test_self_refine_with_other_words_is_measured_again(workdir, measured):
    changes = {'methods': ('base', 'self_refine'), 'temperatures': (1.0,), 'problems': 8}
    for feedback in ('', '', 'make :'):
        evaluation(workdir, **changes, **{'self_refine.feedback': feedback}).run()
    assert len(measured) == 3


def test_self_refine_needs_the_stage_that_it_prompts(workdir, measured, capsys):
    evaluation(workdir, methods=('base', 'self_refine'), temperatures=(0.0,), **{'self_refine.stage': 'none'}).run()
    assert 'no checkpoint of self_refine' in capsys.readouterr().out


# --- many attempts, many samples


def test_many_attempts_and_many_samples_are_rows_of_files_of_their_own(workdir, measured):
    changes = {'attempts.turns': 3, 'attempts.problems': 5, 'scaling.samples': 4, 'scaling.problems': 9}
    plain = {'methods': ('base', 'self_refine'), 'temperatures': (0.0,)}
    evaluation(workdir, **plain).run()
    assert not (workdir / 'attempts.json').exists() and not (workdir / 'scaling.json').exists()
    before = results(workdir)
    for _ in range(2):
        evaluation(workdir, **plain, **changes).run()
        assert measured == [0.0, 0.0, 0.0, 0.7] and results(workdir) == before
    (attempts,), (scaling,) = (json.loads((workdir / name).read_text()) for name in ('attempts.json', 'scaling.json'))
    assert (attempts['method'], attempts['temperature'], attempts['n']) == ('base', 0.0, 5)
    assert {f't{t}' for t in range(1, 4)} | {'t3_low', 'delta_t3', 'truncated_turn3'} <= attempts.keys()
    assert (scaling['method'], scaling['temperature'], scaling['n'], scaling['samples']) == ('base', 0.7, 9, 4)
    assert [line['k'] for line in scaling['pass_at_k']] == [1, 2, 4]
    assert [(line['budget'], line['rollouts']) for line in scaling['vote']] == [(2, 1), (4, 2)]
    evaluation(workdir, **plain).run()
    assert not (workdir / 'attempts.json').exists() and not (workdir / 'scaling.json').exists()


@pytest.mark.parametrize('changes, named', [
    ({'seed': -1}, 'config.seed is -1'),
    ({'methods': ('base', 'models/mine')}, "config.methods has 'models/mine'"),
    ({'self_refine.stage': './base'}, "config.self_refine.stage has './base'"),
    ({'problems': 2000}, 'config.problems is 2000'),
    ({'problems': 0}, 'config.problems is 0'),
    ({'batch': 12}, '8 or 16 would work'),
    ({'samples': -1}, 'config.samples is -1'),
    ({'samples_per_problem': 0}, 'config.samples_per_problem is 0'),
    ({'split': 'dev'}, "split is 'dev'"),
    ({'methods': ()}, 'config.methods'),
    ({'temperatures': ()}, 'config.temperatures'),
    ({'temperatures': (1.0, -0.5)}, 'config.temperatures'),
    ({'rollout.max_length': 18}, 'config.rollout.max_length is 18'),
    ({'rollout.max_length': 24, 'methods': ('base', 'self_refine')}, 'config.rollout.max_length is 24'),
    ({'attempts.turns': 1}, 'config.attempts.turns is 1'),
    ({'scaling.samples': 1}, 'config.scaling.samples is 1'),
    ({'scaling.temperature': 0.0}, 'config.scaling.temperature is 0'),
])
def test_what_cannot_be_evaluated_is_refused_before_anything_runs(workdir, changes, named):
    with pytest.raises(UserError) as error:
        evaluation(workdir, **changes)
    assert named in str(error.value) and '\n' not in str(error.value)
