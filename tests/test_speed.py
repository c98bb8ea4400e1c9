"""FLOPs are those that every token of the tree needs; a profile says where the time of a few steps went."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import memory, mesh_of, random_params, tiny

from score_jax import model as lm
from score_jax import objective, plan, profiling, speed
from score_jax.learner import Learner
from score_jax.lora import LoraConfig
from score_jax.optimizer import OptimizerConfig
from score_jax.rollout import RolloutConfig

PROMPT, INSTRUCTION, LENGTHS, BATCH, FORKS = 5, 2, (4, 6), 3, (2, 3)


def work(lora: LoraConfig | None = None, **model) -> plan.Work:
    optimizer = OptimizerConfig(steps=10, learning_rate=1e-3, schedule='constant', warmup_steps=0, adam_b1=0.9,
                                adam_b2=0.99, adam_eps=1e-8, clip_norm=1.0)
    sampler = RolloutConfig(turns=2, max_tokens=8, max_length=64, temperature=1.0, chunk=8, end_tokens=(1,),
                            pad_token=0)
    learner = Learner(tiny(**model), optimizer, mesh_of(1, 1, 1), 8, memory(), lora)
    aim = objective.read({'name': 'stage1', 'beta1': 0.1, 'beta2': 0.1, 'gamma': 0.0, 'kl_estimator': 'exact',
                          'baseline': 'in_group', 'adaptive_beta2': 0.0, 'allow_gamma_hack': False}, 2)
    return plan.Work(learner=learner, sampler=sampler, objective=aim, forks=FORKS, batch=BATCH, prompt=PROMPT,
                     instruction=INSTRUCTION, reference_on_host=False)


def of_tokens(c: lm.ModelConfig, first: int, last: int) -> float:
    """FLOPs of the layers for tokens at positions `first` to `last`, one by one; the last layer of two is global."""
    total = 0.0
    for position in range(first, last):
        for layer in range(c.layers):
            local = c.window and (layer + 1) % c.global_every
            seen = min((first + last) / 2, c.window) if local else position + 0.5
            total += 2 * plan.matrix_weights(c) / c.layers + 2 * 2 * c.heads * c.head_dim * seen
    return total


@pytest.mark.parametrize('model', [{}, {'window': 3, 'global_every': 2}], ids=['global', 'local'])
def test_flops_of_a_step_are_those_of_its_tokens(model):
    made = work(**model)
    c, found = made.learner.model, speed.reinforce_flops(made, PROMPT, LENGTHS)
    firsts, seconds = BATCH * FORKS[0], BATCH * math.prod(FORKS)
    behind = PROMPT + LENGTHS[0]
    layers = BATCH * of_tokens(c, 0, PROMPT) + firsts * of_tokens(c, PROMPT, behind)
    layers += seconds * of_tokens(c, behind, behind + INSTRUCTION + LENGTHS[1])
    head = 2 * c.width * c.vocab_size * (firsts * LENGTHS[0] + seconds * LENGTHS[1])
    assert found['sampling'] == found['scoring'] == pytest.approx(layers + head)
    assert found['update'] == pytest.approx(3 * (layers + head))


def test_frozen_weights_have_no_gradient():
    found = speed.reinforce_flops(work(LoraConfig(rank=2, alpha=2.0, targets='layers/query')), PROMPT, LENGTHS)
    assert found['update'] == 2 * found['sampling']


def test_a_forward_pass_has_the_flops_that_the_compiler_counts():
    # One layer: of a loop over layers the compiler counts one round.
    c, rows, length = tiny(layers=1, width=64, heads=4, head_dim=16, kv_heads=4, mlp=128, vocab_size=64), 4, 16
    tokens, positions = np.zeros((rows, length), np.int32), np.tile(np.arange(length), (rows, 1))

    def forward(params):
        return lm.logits(params, c, lm.forward(params, c, tokens, positions)[0])
    counted = jax.jit(forward).lower(random_params(c)).compile().cost_analysis()['flops']
    assert speed.imitate_flops(c, rows, length) / 3 == pytest.approx(counted, rel=0.1)


def test_rates_are_those_of_the_whole_step():
    c, mesh = tiny(), mesh_of(2, 1, 1)  # virtual devices share one machine
    assert speed.matrix_rate('float32') > 0
    found = speed.rates(100.0, speed.matrix_rate('float32'), 4.0, c, mesh)
    assert found == {'tokens_per_second': 25.0, 'utilisation': 0.25}


def test_a_profile_traces_three_steps_and_splits_their_time(tmp_path, capsys):
    meter, lines = speed.Meter(), []
    with profiling.Profile('stage1', tmp_path / 'profile', True) as profile:
        for step in range(1, 7):
            with meter.step(), profile.step(step):
                jnp.ones(step).sum().block_until_ready()
            lines.append({'seconds_sample': 0.25, 'seconds_update': 0.5 * step} | meter.figures() | {
                'steps_per_second': 1 / (1 + step), 'tokens_per_second': 10.0, 'utilisation': 0.5, 'score_share': 0.25})
            profile.add(lines[-1])
            with meter.waiting():
                pass
    found = json.loads((tmp_path / 'profile/split.json').read_text())
    assert found['sample'] == 0.25 and found['update'] == 2.0 and found['utilisation'] == 0.5
    save, wait = (np.mean([line[f'seconds_{part}'] for line in lines[2:5]]) for part in ('save', 'wait'))
    assert found['step'] == pytest.approx(5 + save + wait) and found['rest'] == pytest.approx(5 - 2.25)
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
    assert 'stage1: a step takes 5' in capsys.readouterr().out


def test_no_profile_leaves_nothing(tmp_path):
    with profiling.Profile('stage1', tmp_path / 'profile', False) as profile:
        for step in range(1, 7):
            with profile.step(step):
                pass
            profile.add({})
    assert not (tmp_path / 'profile').exists()


def test_programs_of_a_step_are_counted_in_it():
    meter = speed.Meter()
    with meter.step():
        jax.jit(lambda x: x * 3 + 1)(np.zeros(11)).block_until_ready()
    first = meter.figures()
    with meter.step():
        pass
    assert first['compiled'] == 1 and first['seconds_compile'] > 0 and meter.figures()['compiled'] == 0
