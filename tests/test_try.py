"""Trying a model shows what a rollout in training would have sampled, and nothing that harms a terminal."""

import os
import pty
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from helpers import environment
from ml_collections import ConfigDict

from configs import stage1
from score_jax import converse, model, rollout, tasks
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.rewards import Outcome
from score_jax.tokenizers import Bytes
from score_jax.train import model_config
from score_jax.workdir import StageDirectory

ROOT = Path(__file__).resolve().parents[1]
SMALL = {'model.width': 16, 'model.layers': 1, 'model.heads': 2, 'model.kv_heads': 1, 'model.head_dim': 8,
         'model.mlp': 16, 'rollout.max_tokens': 7}
OWN = dict(name='jsonl', train='', test='', grade='maths', prompt='{problem}\n', instruction='\nAgain:\n', form='boxed',
           max_prompt=40, workers=1, seconds=5.0)


def save(workdir: Path, stage: str, seed: int = 0, **changes) -> None:
    """A stage with random parameters at step 3."""
    config = stage1.get_config()
    config.stage = stage
    if 'task' in changes:
        config.task = ConfigDict(changes['task'])
    config.update_from_flattened_dict(SMALL)
    shape = model_config(config.model, tasks.make(config.task))
    directory = StageDirectory(workdir, stage, config)
    directory.open()
    checkpoints = Checkpoints(directory.checkpoints)
    checkpoints.save(3, {'params': model.initialise(shape, jax.random.key(seed))}, meta={})
    checkpoints.close()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('try')
    save(path, 'base')
    save(path, 'stage1', seed=1)
    return path


@pytest.fixture(scope='module')
def own(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('own')
    save(path, 'stage1', task=OWN)
    return path


def test_three_attempts_are_what_a_rollout_of_three_turns_samples(workdir):
    policy = converse.load(workdir, 'base', temperature=0.0)
    problem, graded = converse.problem_from(policy, '5 2 3 make 17')
    conversation, shown = converse.Conversation(policy, problem, graded=graded, seed=0), []
    for _ in range(3):
        pieces = []
        verdict = conversation.attempt(pieces.append)
        shown.append((''.join(pieces), verdict.outcome))
    instruction = policy.task.tokenizer.encode(policy.task.instruction)
    sampling = rollout.RolloutConfig(
        turns=3, max_tokens=7, max_length=64, temperature=0.0, chunk=64, end_tokens=policy.sampling.end_tokens,
        pad_token=policy.sampling.pad_token)
    trajectory = rollout.sample(
        policy.params, policy.model, sampling, policy.mesh, [tasks.prompt_tokens(policy.task, problem)], instruction,
        forks=(1, 1, 1), seed=0, step=0)
    tokens, turn = trajectory.tokens[0], trajectory.turn[0]
    expected = [policy.task.tokenizer.decode(tokens[turn == t].tolist()) for t in (1, 2, 3)]
    assert [text for text, _ in shown] == expected
    assert [outcome is Outcome.TRUNCATED for _, outcome in shown] == trajectory.truncated[0].tolist()


def test_an_attempt_is_a_function_of_the_seed(workdir):
    policy = converse.load(workdir)
    problem, _ = converse.problem_from(policy, '2 3 5 make 17')

    def text(seed: int) -> str:
        pieces = []
        converse.Conversation(policy, problem, graded=True, seed=seed).attempt(pieces.append)
        return ''.join(pieces)
    assert text(1) == text(1) and len({text(seed) for seed in range(4)}) > 1


def test_the_stage_saved_last_is_the_default_and_training_says_how_to_sample(workdir):
    os.utime(workdir / 'base' / 'checkpoints', (1, 1))
    policy = converse.load(workdir)
    assert policy.name == f'stage1 of {workdir}, step 3'
    assert (policy.sampling.temperature, policy.sampling.max_tokens) == (1.0, 7)
    assert converse.load(workdir, 'base', step=3, temperature=0.5, max_tokens=2).sampling.max_tokens == 2


def test_a_task_in_words_takes_any_text_and_has_no_verdict_on_it(own):
    policy = converse.load(own)
    problem, graded = converse.problem_from(policy, 'What is half of [bold]a third[/bold]?')
    pieces = []
    verdict = converse.Conversation(policy, problem, graded=graded, seed=0).attempt(pieces.append)
    assert not graded and (verdict is None or verdict.outcome is Outcome.TRUNCATED)


def test_what_a_model_writes_cannot_steer_the_terminal(own, monkeypatch):
    policy = converse.load(own)
    monkeypatch.setattr(Bytes, 'decode', lambda self, tokens: '\x1b]0;x\x07\x9b31m\u202e\r'[:3 * len(tokens)])
    problem, _ = converse.problem_from(policy, 'x')
    pieces = []
    converse.Conversation(policy, problem, graded=False, seed=0).attempt(pieces.append)
    text = ''.join(pieces)
    assert '⟨U+001B⟩' in text and text.isprintable()


@pytest.mark.parametrize('text', ['3 + 5 = 8', 'año – 中文 🙂 e\u0301', '🙂' * 5, 'a\r\nb', ''])
def test_a_stream_gives_whole_characters_and_in_the_end_all_of_them(text):
    stream = converse.TextStream(Bytes().decode)
    pieces = [stream.add(token) for token in Bytes().encode(text)]
    assert '\ufffd' not in ''.join(pieces) and not any(piece.endswith('\r') for piece in pieces)
    assert ''.join(pieces) + stream.rest() == text


def test_a_stream_of_any_bytes_gives_what_they_decode_to():
    rng = random.Random(0)
    for _ in range(200):
        tokens = rng.choices([*range(259), 0xf0, 0x9f, 0xe2, 0x82, 0x0d, 0x0a], k=12)
        stream = converse.TextStream(Bytes().decode)
        assert ''.join(map(stream.add, tokens)) + stream.rest() == Bytes().decode(tokens)


@pytest.mark.parametrize('text, named', [
    ('2 3 make 17', 'Countdown with 3 numbers; write it like "2 3 4 make 9"'), ('  ', 'the problem is empty'),
    ('2 3 5', "'2 3 5'"), ('2 3 5 make -1', "'2 3 5 make -1'"), ('2 3 5 make ٣', 'Countdown with 3'),
    ('2 3 5 make 100', 'has the number 100'), ('2 3 500 make 1', 'from 0 to 99'), ('\x1b[31m', 'U+001B')])
def test_what_is_no_problem_of_countdown_is_refused_in_one_sentence(workdir, text, named):
    policy = converse.load(workdir)
    with pytest.raises(UserError) as error:
        converse.problem_from(policy, text)
    assert named in str(error.value) and '\n' not in str(error.value) and '\x1b' not in str(error.value)


def test_a_problem_in_words_that_is_too_long_is_refused(own):
    with pytest.raises(UserError, match='config.task.max_prompt is 40'):
        converse.problem_from(converse.load(own), 'x' * 41)


def test_what_is_not_there_is_named(workdir, tmp_path):
    (tmp_path / 'empty').mkdir()
    for arguments, named in [
            ((tmp_path / 'none',), 'python launch/main.py'),
            ((tmp_path / 'empty',), 'holds no checkpoint of any stage'),
            ((workdir, 'stage9'), 'has checkpoints of base, stage1')]:
        with pytest.raises(UserError, match=named):
            converse.load(*arguments)
    with pytest.raises(UserError, match=r'choose one of \[3\]'):
        converse.load(workdir, 'base', step=4)


def test_a_person_is_asked_in_a_terminal(workdir):
    """Enter is another attempt, a text that is no problem is answered, another problem is taken, q ends."""
    ours, theirs = pty.openpty()
    command = [sys.executable, 'launch/try.py', f'--workdir={workdir}', '--stage=base', '--seed=1', '2 3 5 make 17']
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM='xterm', COLUMNS='100'))
    os.close(theirs)
    output, answers, deadline = '', ['\n', 'hello\n', '1 2 3 make 6\n', 'q\n'], time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            output += os.read(ours, 4096).decode(errors='replace')
        except OSError:  # the other side is closed
            break
        if answers and output.endswith('> '):
            os.write(ours, answers.pop(0).encode())
            output += '\n'
    os.close(ours)
    assert process.wait(10) == 0, output
    assert output.count('attempt 3') == 1 and output.count('attempt 2') == 2
    assert "the problem 'hello' is none of Countdown" in output and '1 2 3 make 6 :' in output


def test_a_mistake_is_one_sentence(workdir):
    done = subprocess.run(
        [sys.executable, 'launch/try.py', f'--workdir={workdir}', '2', '3', 'make'], cwd=ROOT, capture_output=True,
        text=True, stdin=subprocess.DEVNULL, env=environment())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and 'Countdown with 3 numbers' in done.stderr
