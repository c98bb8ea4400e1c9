"""Dialogues are laid out exactly as a rollout lays out what it samples."""

import jax
import numpy as np
import pytest

from configs import base
from score_jax import model, rollout
from score_jax.baselines.supervised import Supervised, encode_dialogue
from score_jax.errors import UserError
from score_jax.reinforce import SamplingConfig, sampler
from score_jax.tasks import prompt_tokens
from score_jax.tasks.countdown import Countdown

TINY = {
    'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8, 'model.mlp': 16,
    'batch': 8, 'task.numbers': 3}


@pytest.fixture(scope='module')
def stage(tmp_path_factory) -> Supervised:
    config = base.get_config()
    config.update_from_flattened_dict(TINY)
    return Supervised(config, tmp_path_factory.mktemp('work'))


@pytest.fixture(scope='module')
def dialogues(stage):
    return stage.task.dialogues(8, stage.config.habits, seed=0, step=0)


def test_a_dialogue_is_prompt_response_end_instruction_response_end(stage, dialogues):
    encode, (end,) = stage.task.tokenizer.encode, stage.task.tokenizer.end_tokens
    for problem, (first, second) in dialogues:
        tokens, turn = encode_dialogue(stage.task, problem, [first, second])
        parts = [
            (0, prompt_tokens(stage.task, problem)), (1, [*encode(first), end]),
            (0, encode(stage.task.instruction)), (2, [*encode(second), end])]
        assert tokens == [token for _, part in parts for token in part]
        assert turn == [number for number, part in parts for _ in part]


def test_a_dialogue_has_the_tokens_and_turns_of_a_rollout_that_samples_its_responses(stage, dialogues, monkeypatch):
    task = stage.task
    vocab, (end,) = task.tokenizer.vocab_size, task.tokenizer.end_tokens

    def noise(seed, step, turn, rows, tokens):
        """What draws the dialogues' responses from the uniform distribution over the vocabulary."""
        drawn = [[*task.tokenizer.encode(responses[turn - 1]), end] for _, responses in dialogues]
        return (rollout.pad_rows(drawn, tokens, end)[0] + 0.5) / vocab

    monkeypatch.setattr(rollout, 'turn_noise', noise)
    params = jax.tree.map(np.zeros_like, jax.jit(lambda: model.initialise(stage.model, jax.random.key(0)))())
    sampling = sampler(SamplingConfig(max_tokens=12, max_length=64, chunk=16), task, 2, temperature=1.0)
    trajectory = rollout.sample(
        params, stage.model, sampling, stage.mesh, [prompt_tokens(task, problem) for problem, _ in dialogues],
        task.tokenizer.encode(task.instruction), forks=(1, 1), seed=0, step=0)
    assert not trajectory.truncated.any()
    for row, (problem, responses) in enumerate(dialogues):
        length = trajectory.length[row]
        tokens, turn = encode_dialogue(task, problem, responses)
        assert trajectory.tokens[row, :length].tolist() == tokens
        assert trajectory.turn[row, :length].tolist() == turn


def test_another_seed_gives_other_first_parameters(stage, tmp_path):
    def first(seed: int):
        config = base.get_config()
        config.update_from_flattened_dict(TINY | {'seed': seed})
        return np.asarray(Supervised(config, tmp_path).start()['embedding'])

    assert not np.array_equal(first(0), first(1))


def test_the_first_steps_are_practice_and_the_others_have_the_habits(tmp_path, monkeypatch):
    config = base.get_config()
    config.update_from_flattened_dict(TINY | {'practice_steps': 2})
    stage = Supervised(config, tmp_path)
    seen = []
    monkeypatch.setattr(stage.task, 'dialogues', lambda count, habits, **_: seen.append(habits) or [])
    for step in range(4):
        with pytest.raises(ValueError):  # no dialogues to learn from
            stage.step(None, step)
    assert seen == [stage.config.practice] * 2 + [stage.config.habits] * 2


def test_a_dialogue_of_one_turn_is_an_error(tmp_path):
    config = base.get_config()
    config.turns = 1
    with pytest.raises(UserError, match='config.turns is 1'):
        Supervised(config, tmp_path)


def test_a_task_without_dialogues_is_an_error(tmp_path, monkeypatch):
    monkeypatch.delattr(Countdown, 'dialogues')
    with pytest.raises(UserError, match="config.task.name is 'countdown', for which no dialogues"):
        Supervised(base.get_config(), tmp_path)


@pytest.mark.parametrize('steps', [-1, 10_000])
def test_practice_that_is_longer_than_the_stage_is_an_error(steps, tmp_path):
    config = base.get_config()
    config.practice_steps = steps
    with pytest.raises(UserError, match=f'config.practice_steps is {steps}; it must lie between 0 and config.steps'):
        Supervised(config, tmp_path)
