"""`pip install .` gives the package with its data files, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_is_the_package_and_nothing_else(tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(ROOT / 'score_jax', source / 'score_jax', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'requirements.txt', 'README.md'):
        shutil.copy(ROOT / name, source)
    for name in ('configs', 'launch', 'tests', 'docs', 'benchmarks'):  # as they lie beside it
        (source / name).mkdir()
        (source / name / 'module.py').touch()
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--no-index',
         f'--wheel-dir={tmp_path}', str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel, = tmp_path.glob('*.whl')
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    assert names == {str(path.relative_to(ROOT)) for path in (ROOT / 'score_jax').rglob('*')
                     if path.is_file() and '__pycache__' not in path.parts}
