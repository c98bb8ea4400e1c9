"""Rows are packed as tightly as they fit, each within its shard and part, and widths are few."""

import jax
import numpy as np
import pytest
from helpers import mesh_of, random_tree

from score_jax import layout as layouts
from score_jax.trajectory import Trajectory

ONE = mesh_of(1, 1, 1)


def ragged(lengths, width=16) -> Trajectory:
    rows = len(lengths)
    return Trajectory(
        tokens=np.zeros((rows, width), np.int32), turn=np.zeros((rows, width), np.int32),
        log_probs=np.zeros((rows, width), np.float32), length=np.asarray(lengths, np.int32),
        truncated=np.zeros((rows, 2), bool))


def test_packed_rows_overlap_nowhere_and_cross_no_edge():
    lengths = np.random.default_rng(0).integers(1, 17, 50)
    starts, used = layouts.pack(lengths, 16)
    taken = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths)])
    assert len(set(taken)) == lengths.sum() and taken.max() < used * 16
    assert (starts // 16 == (starts + lengths - 1) // 16).all()
    assert used <= 11 / 9 * -(-lengths.sum() // 16) + 1


@pytest.mark.parametrize('shape, parts', [((1, 1, 1), 1), ((1, 1, 1), 4), ((2, 2, 2), 2)])
def test_rows_are_packed_within_their_shard_and_part(shape, parts):
    """Sixteen problems of two rows; what is read is at least what there is, and less than the rows unpacked."""
    mesh = mesh_of(*shape)
    shards = 1 if shape == (1, 1, 1) else 4
    lengths = np.random.default_rng(1).integers(2, 9, 32)
    layout = layouts.choose(ragged(lengths), (2, 1), 1, mesh=mesh, parts=parts)
    starts = np.asarray(layout.starts)
    groups = layouts.split(np.arange(32), 16, parts).reshape(parts * shards, -1)
    for group in groups:
        taken = np.concatenate([np.arange(starts[row], starts[row] + lengths[row]) for row in group])
        assert len(set(taken)) == lengths[group].sum() and taken.max() < layout.rows * 16
    assert layout.rows < len(groups[0])
    if parts == 1:
        padding = layouts.padding(layout, ragged(lengths), shards)
        assert padding == pytest.approx(1 - lengths.sum() / (layout.rows * shards * 16))


def test_rows_that_do_not_fit_behind_each_other_are_read_as_they_are():
    assert layouts.choose(ragged([9, 10, 16, 12]), (2, 1), 1, mesh=ONE) == layouts.Rows()


def test_few_programs_serve_many_lengths():
    rng, found = np.random.default_rng(2), set()
    for _ in range(40):
        layout = layouts.choose(ragged(rng.integers(1, 17, 64)), (4, 1), 1, mesh=ONE)
        found.add(jax.tree.structure(layout))
    assert len(found) <= 4


def test_shared_turns_are_as_wide_as_the_longest():
    trajectory = random_tree((2, 3))
    turns = abs(trajectory.turn)
    first = max(np.flatnonzero(row == 1)[-1] + 1 for row in turns)
    second = max(np.flatnonzero(row == 2)[-1] - np.flatnonzero(row == 1)[-1] for row in turns)
    assert layouts.choose(trajectory, (2, 3), 1, mesh=ONE).widths == (first, second)
    assert layouts.choose(trajectory, (2, 3), 4, mesh=ONE).widths == tuple(
        min(4 * -(-n // 4), trajectory.tokens.shape[1]) for n in (first, second))
    assert layouts.choose(trajectory, (2, 3), 64, mesh=ONE).widths == (trajectory.tokens.shape[1],) * 2
    tree = layouts.choose(trajectory, (2, 3), 1, mesh=ONE)
    tokens = (turns.cumsum(1) > 0).sum() and 2 * 2 * first + 2 * 6 * second
    assert tree.size(trajectory, 1) == tokens and 0 < layouts.padding(tree, trajectory, 1) < 1
