"""What devices send each other, counted in compiled programs: shares of parameters, and no rows."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import mesh_of, tiny
from jax.sharding import NamedSharding, PartitionSpec
from test_plan import work

from score_jax import dry_run
from score_jax.collectives import _group, collectives


def program(function, mesh, *specs):
    """`function` of f32 `[16, 32]` arrays, compiled."""
    args = [jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, spec)) for spec in specs]
    return collectives(jax.jit(function).lower(*args).compile().as_text(), mesh)


def test_a_sum_over_shares_is_an_all_reduce_of_the_result():
    mesh = mesh_of(2, 4, 1)
    (found,) = program(lambda a: a.sum(axis=0), mesh, PartitionSpec('fsdp'))
    assert (found.kind, found.axes, found.size, found.count) == ('all-reduce', ('fsdp',), 32 * 4, 1)


def test_a_loop_counts_as_often_as_it_runs():
    mesh = mesh_of(1, 4, 2)

    def loop(a):
        def step(x, _):
            whole = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, PartitionSpec()))
            parts = NamedSharding(mesh, PartitionSpec('model'))
            return jax.lax.with_sharding_constraint(whole.T.reshape(x.shape), parts), None
        return jax.lax.scan(step, a, None, length=7)[0]
    found = [one for one in program(loop, mesh, PartitionSpec('model')) if one.kind == 'all-gather']
    assert sum(one.count for one in found) in (7, 8) and {one.axes for one in found} == {('model',)}
    assert {one.size for one in found} == {16 * 32 * 4}


def test_a_loop_whose_end_is_not_known_is_that_over_tokens():
    mesh = mesh_of(1, 8, 1)
    (found,) = program(
        lambda a: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, a), mesh, PartitionSpec('fsdp'))[-1:]
    assert found.again and found.kind == 'all-reduce'


@pytest.mark.parametrize('line, group', [
    ('replica_groups={{0,2},{1,3}}, x', [0, 2]),
    ('replica_groups=[2,4]<=[8], x', [0, 1, 2, 3]),
    ('replica_groups=[4,2]<=[2,2,2]T(2,1,0), x', [0, 4]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1'}, x", [0, 2]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, x", [0, 2]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x", [0, 1]),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(2,1,0)) {'a'}, x", [0, 1])])
def test_groups_are_read_however_they_are_written(line, group):
    assert _group(line) == group


def test_layers_send_parameters_and_no_rows_and_nothing_is_replicated(capfd):
    """With rows on their devices, what travels beside `model` in the loops over layers is at most a layer's weights.

    The compiler warns where it finds no other way from one layout to another than to replicate.
    """
    it = dataclasses.replace(work((2, 2, 2), model=tiny(layers=5)), batch=16)  # fewer are no loop
    found = dry_run.compiled(it)
    layer = sum(x.size // 5 * 4 for x in jax.tree.leaves(it.learner.abstract_params()['layers']))
    rows = it.rows // 2 * it.widths[-1] * 16 * 4
    travels = [one.size for one in found['update'].collectives if one.count == 5 and 'model' not in one.axes]
    assert 0 < max(travels) <= layer < rows / 2
    assert found['decode loop'].collectives and 'rematerialization' not in capfd.readouterr().err
