"""A virtual environment for each peer, in `.venv-peers/`, made once for each state of its requirements."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).parent / 'peers'
FOLDER = ROOT / '.venv-peers'


def python(name: str, here: bool = False) -> str:
    """The interpreter of the environment `name`, which is made where it is not there yet; '', or `here`: this one."""
    if not name or here:
        return sys.executable
    wanted, folder = (REQUIREMENTS / f'{name}.txt').read_text(), FOLDER / name
    stamp, interpreter = folder / hashlib.sha256(wanted.encode()).hexdigest()[:16], folder / 'bin' / 'python'
    if not stamp.exists():
        print(f'making {folder}, some minutes once', file=sys.stderr, flush=True)
        subprocess.run([sys.executable, '-m', 'venv', '--clear', folder], check=True)
        pip = [interpreter, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
        # torch first and alone where there is one: what comes after keeps the build that was chosen here.
        for line in [line for line in wanted.splitlines() if line.startswith('torch==')]:
            subprocess.run([*pip, line], check=True)
        subprocess.run([*pip, '-r', REQUIREMENTS / f'{name}.txt'], check=True)
        stamp.touch()
    return str(interpreter)


def versions(name: str, packages: tuple[str, ...], here: bool = False) -> dict[str, str]:
    """Of packages in an environment."""
    program = 'import importlib.metadata as m, sys; print("\\n".join(m.version(p) for p in sys.argv[1:]))'
    found = subprocess.run([python(name, here), '-c', program, *packages], check=True, capture_output=True, text=True)
    return dict(zip(packages, found.stdout.split(), strict=True))
