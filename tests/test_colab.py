"""launch/colab.ipynb: its cells run from top to bottom, as they are but for the budget."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import environment

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = json.loads((ROOT / 'launch' / 'colab.ipynb').read_text())
CODE = [''.join(cell['source']) for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code']
SECONDS = 900  # a hang is not waited for


def execute(cells: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """The cells one after another in one interpreter, as a kernel does, and how many figures they leave."""
    program = '\n'.join([*cells, 'print(len(plt.get_fignums()), "figures")'])
    return subprocess.run(
        [sys.executable, '-c', program], cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False,
        env=environment(MPLBACKEND='Agg', PYTHONPATH=''))


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder like a clone's, in whose launch/ the notebook is opened."""
    for name in ('configs', 'score_jax', 'requirements.txt'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'launch').mkdir()
    return tmp_path


def test_it_runs_from_top_to_bottom(clone):
    cells = [cell.replace("BUDGET = 'demo'", "BUDGET = 'glance'") for cell in CODE]
    assert sum(a != b for a, b in zip(cells, CODE)) == 1
    done = execute(cells, clone / 'launch')
    assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    said = done.stdout
    assert 'everything is here already' in said and '1 figures' in said
    for part in ('stage2: done', 'stage2   temperature 1   t1', 'first   ', 'second  '):
        assert part in said
    assert (clone / 'runs' / 'colab' / 'report.html').is_file()


def test_alone_it_asks_for_the_code(tmp_path):
    done = execute(CODE[:1], tmp_path)
    assert done.returncode == 1 and 'Set REPOSITORY above' in done.stderr


def test_no_output_is_kept():
    for cell in NOTEBOOK['cells']:
        assert cell['cell_type'] == 'markdown' or (cell['outputs'] == [] and cell['execution_count'] is None)
    assert NOTEBOOK['nbformat'] == 4
