"""STaR and Pair-SFT: which pairs there are, what of them is imitated, and that iterations start where they should."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from configs import baselines
from score_jax import model, sharding
from score_jax.baselines import pairs
from score_jax.baselines.pairs import Pairs, Response, drawn, from_problem, from_rollouts
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.rewards import Outcome, Verdict
from score_jax.tasks import instruction_tokens, prompt_tokens
from score_jax.tasks.countdown import Countdown

TINY = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16,
    'rollout.max_tokens': 4, 'rollout.max_length': 32, 'rollout.chunk': 32, 'batch': 8, 'steps': 6, 'iterations': 2,
    'problems': 70, 'group.first': 2, 'group.second': 2, 'optimizer.warmup_steps': 0, 'save_every': 1, 'keep': 9,
    'log_every': 100, 'samples': 3}
WRONG, RIGHT, ALSO = Response([1, 3], False), Response([2, 3], True), Response([4, 3], True)


def test_a_pair_of_a_rollout_ends_right():
    rollouts = [(WRONG, WRONG), (WRONG, RIGHT), (RIGHT, WRONG), (RIGHT, ALSO)]
    assert from_rollouts(rollouts, keep_right=False) == [(WRONG, RIGHT)]
    assert from_rollouts(rollouts, keep_right=True) == [(WRONG, RIGHT), (RIGHT, ALSO)]


def test_an_attempt_is_paired_with_every_other_right_one_and_never_with_itself():
    seen = {False: set(), True: set()}
    for seed in range(50):
        for keep_right in seen:
            found = from_problem([WRONG, RIGHT, ALSO], keep_right, np.random.default_rng(seed))
            seen[keep_right] |= {(first.tokens[0], second.tokens[0]) for first, second in found}
            assert len(found) == (3 if keep_right else 1)
    assert seen[False] == {(1, 2), (1, 4)}
    assert seen[True] == {(1, 2), (1, 4), (2, 4), (4, 2)}
    assert from_problem([WRONG, RIGHT], True, np.random.default_rng(0)) == [(WRONG, RIGHT)]
    assert from_problem([WRONG, WRONG], True, np.random.default_rng(0)) == []


def test_every_entry_is_drawn_once_before_any_is_drawn_again():
    places = np.concatenate([drawn(7, 3, step, (1, 2)) for step in range(14)])
    for epoch in places.reshape(-1, 7):
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in places.reshape(-1, 7)}) > 1
    assert (drawn(2, 5, 0, (1, 2)) < 2).all()


def verify(self, problems, responses):
    """Verdicts that a model that knows nothing earns now and then; of one response in seven the grader fails."""
    del self, problems
    kinds = [sum(map(ord, response)) % 7 for response in responses]
    return [Verdict(Outcome.SANDBOX_ERROR if kind == 0 else Outcome.CORRECT if kind < 3 else Outcome.WRONG)
            for kind in kinds]


def make(tmp_path, preset='star', **changes) -> Pairs:
    config = baselines.get_config(preset)
    config.update_from_flattened_dict(TINY | {key: value for key, value in changes.items()})
    stage = Pairs(config, tmp_path)
    stage.sampler = dataclasses.replace(stage.sampler, end_tokens=tuple(range(0, 137, 3)))  # else nothing would end
    return stage


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A workdir with a base of random parameters."""
    monkeypatch.setattr(Countdown, 'verify', verify)
    stage = make(tmp_path)
    checkpoints = Checkpoints(tmp_path / 'base' / 'checkpoints')
    checkpoints.save(1, {'params': jax.jit(lambda: model.initialise(stage.model, jax.random.key(0)))()}, meta={})
    checkpoints.close()
    return tmp_path


def rows_of(stage: Pairs, iteration: int):
    return pairs.read(stage.directory.path / f'pairs-{iteration}.npz', 1, stage.task.tokenizer.pad_token)


def texts(stage: Pairs, tokens, turn, number: int) -> str:
    return stage.task.tokenizer.decode(tokens[turn == number].tolist())


def is_right(text: str) -> bool:
    return sum(map(ord, text)) % 7 in (1, 2)


@pytest.mark.parametrize('preset', ['star_correct', 'pair_sft_correct'])
def test_right_responses_are_imitated_and_the_others_are_context(workdir, preset):
    stage = make(workdir, preset, iterations=1, steps=1)
    stage.run()
    tokens, turn = rows_of(stage, 0)
    assert len(tokens) > 20
    firsts = 0
    for row, own in zip(tokens, turn):
        assert is_right(texts(stage, row, own, 2))
        if (own == 1).any():
            firsts += 1
            assert is_right(texts(stage, row, own, 1))
    assert 0 < firsts < len(tokens)  # right first attempts have pairs, and wrong ones are not imitated
    instruction = instruction_tokens(stage.task)
    starts = [row.tolist() for row in tokens]
    prompts = {tuple(prompt_tokens(stage.task, problem))
               for problem in stage.task.problems('train', TINY['problems'], seed=stage.seed, step=0)}
    for row, own in zip(starts, turn):
        assert any(tuple(row[:n]) in prompts for n in range(len(row)))
        second = int(np.flatnonzero(own == 2)[0])
        assert row[second - len(instruction):second] == instruction


def test_without_right_first_attempts_only_the_second_is_imitated(workdir):
    stage = make(workdir, 'star', iterations=1, steps=1)
    stage.run()
    assert set(np.unique(rows_of(stage, 0)[1])) == {0, 2}


def test_every_iteration_samples_from_the_one_before_and_trains_anew(workdir):
    stage = make(workdir, learning_rate=0.05)
    stage.run()
    checkpoints = Checkpoints(stage.directory.checkpoints)
    states = {step: checkpoints.restore(stage.learner.abstract_state(), step=step)[0] for step in (3, 4, 6)}
    assert [int(state.step) for state in states.values()] == [3, 1, 3]  # of the schedule of their iteration
    # Iteration 2, by hand: one update from the base on what the parameters of step 3 sampled.
    rows, _, _ = make(workdir, learning_rate=0.05)._make(states[3].params, 1)
    stored = rows_of(stage, 1)
    assert len(rows) == len(stored[0])
    assert all(row[:len(tokens)].tolist() == tokens for row, (tokens, _) in zip(stored[0], rows))
    state = stage.learner.new_state(stage.start())
    chosen = drawn(len(rows), 8, 0, (stage.seed, 1))
    batch = pairs.read(stage.directory.path / 'pairs-1.npz', 32, stage.task.tokenizer.pad_token)
    again, _ = stage.learner.imitate(state, *sharding.put_batch(stage.mesh, tuple(part[chosen] for part in batch)))
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(states[4].params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stage_that_goes_on_ends_as_one_that_was_left_alone(workdir):
    whole = make(workdir)
    whole.run()
    part = make(workdir, stage='part')
    part.seed = whole.seed
    real, calls = part.step, []

    def killed(state, step):
        calls.append(step)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(state, step)

    part.step = killed
    with pytest.raises(KeyboardInterrupt):
        part.run()
    while Checkpoints(part.directory.checkpoints).latest() != 4:  # saves go on in the background
        time.sleep(0.01)
    again = make(workdir, stage='part')
    again.seed = whole.seed
    again.run()
    ends = [
        Checkpoints(stage.directory.checkpoints).restore(stage.learner.abstract_state())[0] for stage in (whole, again)]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_stage_goes_on_with_the_base_that_it_was_begun_with_alone(tmp_path):
    for name, meta in (('base', {}), ('star', {'origins': {'base': 'another'}})):
        checkpoints = Checkpoints(tmp_path / name / 'checkpoints')
        checkpoints.save(1, {'params': {}, 'x': jax.numpy.ones(2)}, meta=meta)
        checkpoints.close()
    made = make(tmp_path)
    with pytest.raises(UserError, match="star was begun with 'base' as it was then, which has changed since"):
        made.step(None, 4)


@pytest.mark.parametrize('changes, sentence', [
    ({'pairs': 'both'}, "config.pairs is 'both'; it must be one of rollout, problem"),
    ({'steps': 7}, 'config.steps is 7, which config.iterations = 2 does not divide; 6 would do'),
    ({'iterations': 0}, 'config.iterations is 0; it must be at least 1'),
    ({'pairs': 'problem', 'group.first': 1}, 'config.group.first is 1'),
    ({'temperature': 0.0}, 'config.temperature is 0.0; pairs are sampled'),
])
def test_what_makes_no_sense_is_said(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        make(tmp_path, **changes)


def test_a_sample_without_any_pair_is_said_and_trains_nothing(workdir, monkeypatch):
    monkeypatch.setattr(
        Countdown, 'verify', lambda self, problems, responses: [Verdict(Outcome.WRONG)] * len(responses))
    with pytest.raises(UserError, match='none of 280 samples of iteration 0 makes a pair'):
        make(workdir).run()


def test_what_is_sampled_at_a_time_fits_the_mesh(workdir, monkeypatch):
    sizes = []
    monkeypatch.setattr(pairs, '_BATCH', 20)  # which 8 batch shards do not divide
    monkeypatch.setattr(pairs.rollout, 'sample', lambda *args, **kwargs: sizes.append(len(args[4])) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(make(workdir)._sampled({}, 0))
    assert sizes == [24]
