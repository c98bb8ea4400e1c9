"""One program on any mesh: the same trajectories, the same updates, parameters in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import memory, mesh_of, random_params, tiny
from jax.sharding import PartitionSpec

from score_jax import objective, rollout, sharding
from score_jax import model as lm
from score_jax.checkpoint import Checkpoints
from score_jax.errors import UserError
from score_jax.learner import Learner
from score_jax.optimizer import OptimizerConfig
from score_jax.sharding import MeshConfig, check_divisible, make_mesh, named_sharding

CONFIG = tiny(tied=False)
OPTIMIZER = OptimizerConfig(
    steps=10, learning_rate=0.002, schedule='constant', warmup_steps=0, adam_b1=0.9, adam_b2=0.99, adam_eps=1e-4,
    clip_norm=1.0)
ROLLOUT = rollout.RolloutConfig(
    turns=2, max_tokens=4, max_length=16, temperature=1.0, chunk=16, end_tokens=(0,), pad_token=0)
OBJECTIVE = objective.resolve(
    'stage2', turns=2, gamma=0.0, kl_estimator='exact', baseline='in_group', adaptive_beta2=0.0, allow_gamma_hack=False,
    alpha=2.0, beta1=0.1)
PROMPTS = [[1], [2, 3, 4], [5, 6], [7], [1, 2], [3], [4, 4, 4], [6]]
STEPS = 10


@functools.cache
def learner_on(*shape: int) -> Learner:
    """What updates on a mesh."""
    return Learner(CONFIG, OPTIMIZER, mesh_of(*shape), 8, memory())


def placed(learner: Learner, seed: int):
    return jax.device_put(random_params(CONFIG, seed), lm.shardings(CONFIG, learner.mesh))


def advance(learner: Learner, state, step: int):
    """A step of sampling and reinforcement: the state, the trajectory, and its loss."""
    trajectory = rollout.sample(
        state.params, CONFIG, ROLLOUT, learner.mesh, PROMPTS, [5], forks=(2, 2), seed=3, step=step)
    turn = np.asarray(trajectory.turn)
    correct = np.stack([(turn == t).sum(1) % 2 for t in (1, 2)], axis=1).astype(np.float32)
    state, metrics = learner.reinforce(
        state, placed(learner, 1), trajectory, sharding.put_batch(learner.mesh, correct), objective=OBJECTIVE,
        forks=(2, 2), temperature=1.0)
    return state, trajectory, float(metrics['loss'])


@functools.cache
def train(*shape: int):
    """Ten steps on a mesh: trajectories and losses on the host, the last state, the last trajectory."""
    learner, trajectories, losses = learner_on(*shape), [], []
    state = learner.new_state(placed(learner, 0))
    for step in range(STEPS):
        state, trajectory, loss = advance(learner, state, step)
        trajectories.append(jax.tree.map(np.asarray, trajectory))
        losses.append(loss)
    return trajectories, losses, state, trajectory


def check_close(a, b):
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 4, 1), (4, 2, 1), (2, 2, 2)])
def test_eight_devices_do_what_one_does(shape):
    one, many = train(1, 1, 1), train(*shape)
    for a, b in zip(one[0], many[0], strict=True):
        for name in ('tokens', 'turn', 'length', 'truncated'):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)
    check_close(one[1:3], many[1:3])
    moved = [np.abs(a - b).max() for a, b in zip(
        jax.tree.leaves(one[2].params), jax.tree.leaves(random_params(CONFIG)), strict=True)]
    assert min(moved) > 1e-3


def test_a_checkpoint_of_one_mesh_goes_on_on_another_from_the_same_bits(tmp_path):
    before = state = train(4, 2, 1)[2]
    for shape in ((2, 4, 1), (1, 1, 1)):
        checkpoints = Checkpoints(tmp_path / '-'.join(map(str, shape)))
        checkpoints.save(STEPS, state, meta={})
        checkpoints.close()
        learner = learner_on(*shape)
        state, _ = checkpoints.restore(learner.abstract_state())
        assert {x.sharding.mesh for x in jax.tree.leaves(state)} == {learner.mesh}
        for x, y in zip(*map(jax.tree.leaves, (before, state)), strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        after, trajectory, loss = advance(learner, jax.tree.map(jnp.copy, state), STEPS)
        there = advance(learner_on(4, 2, 1), jax.tree.map(jnp.copy, before), STEPS)
        np.testing.assert_array_equal(trajectory.tokens, there[1].tokens)
        check_close((after, loss), (there[0], there[2]))


def test_parameters_moments_and_rows_are_in_parts():
    _, _, state, trajectory = train(2, 2, 2)
    adam = next(x for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(x, 'mu'))
    for tree in (state.params, adam.mu, adam.nu):
        assert tree['layers']['query'].addressable_shards[0].data.shape == (2, 8, 2, 4)  # embed and heads halved
        assert tree['layers']['down'].addressable_shards[0].data.shape == (2, 12, 8)
        assert tree['head'].addressable_shards[0].data.shape == (4, 8)
        assert len(tree['head'].addressable_shards) == 8
    assert trajectory.tokens.addressable_shards[0].data.shape[0] == len(trajectory.tokens) // 4


def test_an_axis_that_its_mesh_axes_do_not_divide_is_whole():
    mesh = mesh_of(2, 2, 2)
    assert named_sharding(mesh, ('vocab', 'embed'), (8, 16)).spec == PartitionSpec('model', 'fsdp')
    assert named_sharding(mesh, ('vocab', 'embed'), (7, 16)).spec == PartitionSpec(None, 'fsdp')
    assert named_sharding(mesh, ('batch', None), (6, 3)).spec == PartitionSpec()
    assert named_sharding(mesh, ('batch', None), (8, 3)).spec == PartitionSpec(('data', 'fsdp'))


def test_the_mesh_takes_all_devices():
    assert dict(make_mesh(MeshConfig(data=-1, fsdp=2, model=1)).shape) == {'data': 4, 'fsdp': 2, 'model': 1}
    assert dict(make_mesh(MeshConfig(data=2, fsdp=2, model=2)).shape) == {'data': 2, 'fsdp': 2, 'model': 2}


@pytest.mark.parametrize('sizes, message', [
    ((3, 1, -1), 'data = 3, fsdp = 1, model = -1, which does not fit the 8 .*divide 8'),
    ((2, 2, 1), 'data = 2, fsdp = 2, model = 1, which does not fit the 8'),
    ((-1, -1, 1), 'at most one may be -1'), ((0, 1, -1), 'data = 0.*must be positive')])
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(UserError, match=f'config.mesh has .*{message}|config.mesh has {message}'):
        make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], model=sizes[2]))


def test_a_batch_that_does_not_divide_is_told_what_would():
    mesh = mesh_of(2, 2, 2)
    check_divisible('config.batch', 12, mesh)
    with pytest.raises(UserError, match=r'config.batch is 10, .*4 batch .*\(data = 2 x fsdp = 2\).*; 8 or 12 would'):
        check_divisible('config.batch', 10, mesh)
    with pytest.raises(UserError, match='config.batch is 3, .*; 4 would work'):
        check_divisible('config.batch', 3, mesh)
    with pytest.raises(UserError, match='the number of prompts is 3'):
        rollout.sample({}, CONFIG, ROLLOUT, mesh, PROMPTS[:3], [5], forks=(1, 1), seed=0, step=0)
