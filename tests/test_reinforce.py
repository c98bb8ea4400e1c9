"""Stages over more turns and on given first attempts, end to end with a tiny model that knows nothing."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import mesh_of, untimed

from configs import stage1
from score_jax import offline, ragged, sharding
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.offline import FirstAttempts, OfflineConfig
from score_jax.reinforce import Reinforce

STEPS = 4
TINY = {
    'model.width': 8, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 8,
    'task.largest': 9, 'task.limit': 40, 'rollout.max_tokens': 4, 'rollout.max_length': 48, 'rollout.chunk': 48,
    'start_from': 'random', 'reference': 'random', 'offline.source': 'random', 'offline.share': 0.5,
    'offline.problems': 10, 'offline.attempts': 3, 'group.first': 2, 'group.second': 2, 'group.later': 2, 'turns': 3,
    'steps': STEPS, 'batch': 4, 'save_every': 2, 'log_every': 2, 'optimizer.warmup_steps': 1, 'sample_every': 1,
    'samples': 4, 'learning_rate': 1e-2, 'objective.adaptive_beta2': 0.1}


def stage(workdir: Path, **changes) -> Reinforce:
    config = stage1.get_config()
    config.update_from_flattened_dict(TINY | changes)
    return Reinforce(config, workdir)


def lines(workdir: Path, name: str) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / 'stage1' / name).read_text().splitlines()]
    return [untimed(row) for row in rows]


def final_state(workdir: Path) -> list[np.ndarray]:
    made = stage(workdir)
    like = made.learner.abstract_state()
    return [np.asarray(x) for x in jax.tree.leaves(Checkpoints(workdir / 'stage1' / 'checkpoints').restore(like)[0])]


@pytest.fixture(scope='module', autouse=True)
def one_device():
    """Which is fastest for a model of this size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', lambda _: mesh_of(1, 1, 1))
        yield


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
    """Three turns, half of the problems with given first attempts, an adaptive beta2."""
    workdir = tmp_path_factory.mktemp('mixture') / 'w'
    stage(workdir).run()
    return workdir


def test_figures_of_every_turn_and_of_both_kinds_of_rows(mixture):
    rows = lines(mixture, 'metrics.jsonl')
    assert len(rows) == STEPS
    for row in rows:
        assert {'t1', 't3', 'delta', 'delta_t3', 'kl_turn3', 'offline_t1', 'offline_t3', 'beta2_scale'} <= row.keys()
        assert row['log_prob_gap'] < 1e-3 and row['dropped'] == row['skipped'] == 0
    samples = lines(mixture, 'samples.jsonl')
    assert len(samples) == 4 * STEPS and all(turn['tokens'] for sample in samples for turn in sample['turns'])


def test_beta2_moves_as_the_formula_says(mixture):
    scales = [row['beta2_scale'] for row in lines(mixture, 'metrics.jsonl')]
    assert scales[0] == 1 and all(1 / 1.0201 < b / a < 1.0201 and b != a for a, b in zip(scales, scales[1:]))


@pytest.mark.parametrize('store', ['kept', 'lost'])
def test_a_stage_that_goes_on_ends_the_same_to_the_bit(mixture, tmp_path, store):
    """Also where the first attempts have to be made again."""
    workdir = shutil.copytree(mixture, tmp_path / 'w')
    shutil.rmtree(workdir / 'stage1' / 'checkpoints' / str(STEPS))
    if store == 'lost':
        (workdir / 'stage1' / 'first_attempts.npz').unlink()
    stage(workdir).run()
    for a, b in zip(final_state(mixture), final_state(workdir), strict=True):
        assert a.tobytes() == b.tobytes()
    for name in ('metrics.jsonl', 'samples.jsonl'):
        assert lines(workdir, name) == lines(mixture, name)


def test_a_stage_goes_on_with_the_base_that_it_was_begun_with_alone(tmp_path):
    for name, meta in (('base', {}), ('stage1', {'origins': {'base': 'another'}})):
        checkpoints = Checkpoints(tmp_path / name / 'checkpoints')
        checkpoints.save(1, {'params': {}, 'x': jax.numpy.ones(2)}, meta=meta)
        checkpoints.close()
    made = stage(tmp_path, reference='base')
    with pytest.raises(UserError, match="stage1 was begun with 'base' as it was then, which has changed since"):
        made.frozen()


def test_given_attempts_are_those_of_the_store_and_of_its_problems(mixture):
    made = stage(mixture)
    problems, given = made._problems(2)
    assert len(problems) == 4 and len(given) == 8 and all(given[:4]) and not any(given[4:])
    stored = made._first_attempts
    assert len(stored.problems) == 10 and {len(responses) for responses in stored.responses} == {3}
    for problem, responses in zip(problems[:2], (given[:2], given[2:4])):
        assert all(response in stored.responses[stored.problems.index(problem)] for response in responses)
    again, other = made._problems(2), made._problems(3)
    assert (problems, given) == again and problems[:2] != other[0][:2]


def test_only_offline_first_attempts_leave_turn_1_alone(tmp_path):
    made = stage(tmp_path / 'w', **{'offline.share': 1.0, 'turns': 2, 'objective.adaptive_beta2': 0.0, 'steps': 2})
    made.run()
    for row in lines(tmp_path / 'w', 'metrics.jsonl'):
        assert row['kl_turn1'] == row['length_turn1'] == 0 < row['length_turn2'] and 't1' in row
        assert not any(name.startswith('offline_') for name in row)


def test_warnings_stand_in_the_metrics_and_are_said_once(mixture, capsys, monkeypatch):
    made = stage(mixture)
    monkeypatch.setattr('score_jax.monitor.look', lambda rows, steps: {'copying': f'after {len(rows)}'})
    assert made._warnings({'t1': 0.0, 'delta': 0.0, 'changed': 0.0}, STEPS) == {'warnings': ['copying']}
    assert made._warnings({'t1': 0.0, 'delta': 0.0, 'changed': 0.0}, STEPS + 1) == {'warnings': ['copying']}
    assert capsys.readouterr().out == f'stage1       5/{STEPS}  warning: after 5\n'


def test_a_store_is_cut_into_the_attempts_at_each_problem(tmp_path):
    ragged.write(tmp_path / 'first_attempts.npz', tokens=[[1, 2], [3], [4, 5, 6], [7]])
    stored = offline.read(tmp_path / 'first_attempts.npz', ['p', 'q'], 2)
    assert stored == FirstAttempts(['p', 'q'], [[[1, 2], [3]], [[4, 5, 6], [7]]])


def test_a_store_of_another_size_is_refused(tmp_path):
    ragged.write(tmp_path / 'first_attempts.npz', tokens=[[1, 2], [3], [4]])
    with pytest.raises(UserError, match='has 3 responses, not 2 to each of 2 problems; delete it'):
        offline.read(tmp_path / 'first_attempts.npz', ['p', 'q'], 2)


def test_what_is_drawn_is_drawn_once_a_step():
    stored = FirstAttempts(list('abcde'), [[[10 * i + j] for j in range(4)] for i in range(5)])
    for step in range(5):
        problems, responses = stored.draw(3, 4, seed=0, step=step)
        assert len(set(problems)) == 3
        assert [sorted(responses[4 * i:4 * i + 4]) for i in range(3)] == [
            stored.responses['abcde'.index(problem)] for problem in problems]


@pytest.mark.parametrize('changes, named', [
    ({'offline.share': 1.5}, 'config.offline.share is 1.5'), ({'offline.share': 0.1}, 'config.offline.share is 0.1'),
    ({'offline.attempts': 1}, 'attempts = 1'), ({'offline.problems': 1}, 'problems = 1'),
    ({'turns': 1}, 'config.turns is 1'), ({'group.later': 0}, r'config.group is \(2, 2, 0\)'),
    ({'rollout.max_length': 20}, 'config.rollout.max_length is 20, but .* 3 responses')])
def test_what_cannot_work_is_refused(changes, named, tmp_path):
    with pytest.raises(UserError, match=named):
        stage(tmp_path / 'w', **changes)
    assert not (tmp_path / 'w').exists()


def test_a_share_is_rounded_to_problems():
    values = dict(source='base', problems=100, attempts=4)
    for share, count in ((0.0, 0), (0.5, 8), (0.52, 8), (1.0, 16)):
        assert OfflineConfig(share=share, **values).problems_a_step(16, 4) == count
