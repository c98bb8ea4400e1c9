"""The benchmark of a step: what it counts is what there is, sides take turns, and its page is complete."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import run
from benchmarks.speed import measure, report, sides, table, workloads
from score_jax import model

ROOT = Path(__file__).resolve().parents[1]
WORK = workloads.WORKLOADS


def rows_of(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in page.splitlines() if line.startswith('|')]


def test_the_program_writes_a_page_without_gaps(tmp_path):
    done = subprocess.run(
        [sys.executable, 'benchmarks/run.py', '--quick', '--peers=', '--only=W1,G1', '--repeats=1', '--threads=1',
         '--baseline=', f'--out={tmp_path / "page.md"}', f'--weights={tmp_path / "weights"}'], cwd=ROOT,
        capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / 'page.md').read_text()
    assert done.stdout.strip() == page.strip()
    ours, limit = [row for row in rows_of(page) if row[0] == 'W1']
    assert ours[1] == 'score_jax' and all(re.search(r'\d', cell) for cell in (ours[2], ours[3], *ours[5:]))
    assert limit[1] == 'the limit' and limit[2].endswith('tokens/s')
    rates = [row for row in rows_of(page) if row[0] in ('layers, many tokens', 'reading memory (GB/s)')]
    assert len(rates) == 2 and all(float(row[-1].strip('*')) == max(map(float, row[1:-1])) > 0 for row in rates)
    assert '- W1: 0 programs compiled after the first repetition' in page and 'turn 2 takes' in page
    if subprocess.run(['sh', '-c', 'command -v nvidia-smi'], capture_output=True).returncode:
        assert 'needs an NVIDIA GPU, and there is none here' in page


def test_a_workload_that_is_none_is_refused():
    done = subprocess.run(
        [sys.executable, 'benchmarks/run.py', '--only=W9'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and '--only: W9 is none of limits, W1' in done.stderr


def test_figures_are_kept_in_a_folder_that_is_new(tmp_path, monkeypatch):
    there = tmp_path / 'new' / 'speed'
    monkeypatch.setattr(sys, 'argv', ['run.py', '--only=W4', f'--out={tmp_path / "page.md"}', f'--weights={there}'])
    monkeypatch.setattr(measure, 'everything', lambda *_: {'workloads': {}})
    monkeypatch.setattr(report, 'markdown', lambda results: f'{results["workloads"]}')
    run.main()
    assert json.loads((there / 'figures.json').read_text())['settings']['repeats'] == 3
    assert (tmp_path / 'page.md').read_text() == '{}'


def test_weights_are_counted_as_they_are_declared():
    shape = workloads.SMALL
    config = model.ModelConfig(
        vocab_size=shape.vocab_size, width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads,
        head_dim=shape.head_dim, mlp=shape.mlp, tied=True, rope_base=1e6, norm_eps=1e-6, dtype='float32')
    declared = jax.tree.leaves(model.declare(config), is_leaf=lambda x: hasattr(x, 'stddev'))
    products = sum(np.prod(p.shape) for p in declared if p.stddev)
    assert shape.body + shape.head == products


def test_a_ragged_batch_ends_evenly_in_random_order():
    stops = WORK['W3'].stop_at
    assert sorted(stops) != stops and len(stops) == 64 and min(stops) == 16 and max(stops) == 512
    assert set(np.diff(sorted(stops))) == {7, 8}
    assert WORK['W3'].sampled == sum(stops) == 64 * 264


def test_attention_is_counted_token_by_token():
    work, shape = WORK['W1'], workloads.SMALL
    by_hand = sum(2 * 2 * shape.layers * shape.heads * shape.head_dim * (position + 1) for position in range(336))
    flops = workloads.rollout_flops(work)
    assert flops['prefill'] - 2 * 32 * (64 + 16) * shape.body == pytest.approx(32 * by_hand)
    assert flops['decode head'] == 2 * 32 * 256 * 512 * 32768
    assert sum(workloads.update_flops(work).values()) == pytest.approx(
        4 * (2 * 32 * (336 * shape.body + 256 * shape.head) + 32 * by_hand))


@pytest.mark.parametrize('workload, order', [
    ('W1', 'a bad c a bad c a c a c'), ('G1', 'a a a a bad bad c c c c')])  # a GPU has one of them at a time
def test_sides_take_turns_and_one_that_fails_is_reported(tmp_path, monkeypatch, workload, order):
    """Each says in a file that all share when it was at work."""
    (tmp_path / 'a_side.py').write_text(
        'import json, sys\n'
        'name = sys.argv[2].removeprefix("--variant=")\n'
        'for n in range(9):\n'
        '    if n and not sys.stdin.readline(): break\n'
        '    if name == "bad" and n == 2: sys.exit("no more")\n'
        '    open("order", "a").write(name + " ")\n'
        '    print(json.dumps({"seconds": n + 1.0, "peak": 2**30}), flush=True)\n')

    def side(name):
        return sides.Side(
            name=name, workload=workload, part='update', module='a_side', variant=name, tree=tmp_path)
    settings = sides.Settings(threads=1, clock='wall', quick=True, weights=tmp_path, here=True)
    found = sides.in_turn([side('a'), side('bad'), side('c')], 3, settings, lambda line: None)
    assert (tmp_path / 'order').read_text().split() == order.split()
    assert [x['seconds'] for x in found['a']] == [1, 2, 3, 4] and found['bad'][-1]['failed'] == 'no more'
    assert table.seconds(found['a']) == 3 and table.seconds(found['bad']) == 2
    page = table.sides_table(table.rows('W1', 'update', {'score_jax': found['a'], **found}, None, None))
    assert json.dumps(rows_of(page)[2][2:4]) == '["3 s", "2 to 4"]'


def test_the_page_says_how_sides_compare():
    """Of figures by hand: two repetitions a side behind the warm-up, 2 s of ours and 3 s of the others."""
    def side(seconds, **more):
        return [{'seconds': 9.0, 'peak': 2**30, **more}, *[{'seconds': seconds, 'peak': 2**30, **more}] * 2]
    first = {'loss': 1.0, 't1': 0.25}
    lines = report.ratios({'workloads': {
        'W1': {'score_jax': side(2, turns=[1.0, 1.02], tokens=8192, programs=0),
               'transformers, so': side(3, tokens=8192), 'transformers, else': side(4, tokens=8192)},
        'W2': {'score_jax': side(2, grad_norm=1.5), 'PyTorch': side(3, grad_norm=1.5)},
        'step': {'score_jax': side(4), 'TRL': side(6, rollout=2.5)},
        'W4': {'score_jax': side(2, first=first), 'at abc': side(3, first=first | {'t1': 0.5})},
        'devices': {'score_jax': side(2), 'eight': side(3), 'alone': side(0.5)}}})
    for line in (
        'W1: 1.50 x as fast as the best other (transformers, so)', 'W1: turn 2 takes 1.020 of the time of turn 1',
        'W1: 0 programs compiled after the first repetition', 'W2: 1.00 of the peak memory of PyTorch',
        'W2: norm of the gradient on the first weights: score_jax 1.5, PyTorch 1.5',
        'step: TRL samples in 2.5 s of its step', 'W4: 1.50 x as fast as the best other (at abc)',
        'W4: the figures of the first step differ by 0.2 at most from those at abc',
        'devices: 8 virtual devices take 3 s where one takes 2 s (1.50 x); '
        'what they tell each other takes 0.5 s by itself'):
        assert line in lines
    whole = table.summed({
        'W1': {'transformers, so': side(3), 'transformers, else': side(2.5)}, 'W2': {'PyTorch': side(3)}})
    assert whole == [('transformers and PyTorch, W1 + W2', 5.5)]
