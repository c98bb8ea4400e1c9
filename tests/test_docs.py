"""README.md and docs/*.md do what they say: every command and program in them is run, in the order of the pages.

A block of ```bash is run by bash, one of ```python by Python, all in one folder that looks like a clone of this
repository, so what a block leaves behind is there for those after it. A ```python block whose first line is
`# FILE.py` is saved under that name instead. What stands in a comment above a block changes how it is run:

    <!-- test: small -->       launch/main.py gets a tiny model and few steps: SMALL below
    <!-- test: skip WHY -->    nothing is run; the keys of its launch/main.py commands are looked up with --keys

The server of launch/watch.py is asked once for its page and ended.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import helpers
import pytest
from small import BASE, EVALUATE, MODEL, REINFORCE, under

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
# In the order in which README.md names them, which is that of reading.
PAGES = [README, *(ROOT / name for name in dict.fromkeys(re.findall(r'\]\((docs/\w+\.md)', README.read_text())))]
_BLOCK = re.compile(r'(?:^<!-- test: (?P<how>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$', re.M | re.S)
_SECONDS = 300  # that a block may take at most; a hang is not waited for

_EVALUATE = EVALUATE | {'temperatures': (1.0,)}
# By config file, or file and preset: what `small` adds to a command that runs it.
SMALL = {
    'base': MODEL | BASE,
    'stage1': MODEL | REINFORCE | under('before', BASE),
    'stage1:jsonl-tiny': {'group.first': 2, 'group.second': 1, 'steps': 1, 'save_every': 1},
    'stage2': MODEL | REINFORCE,
    'ablation': MODEL | REINFORCE,
    'evaluate': MODEL | _EVALUATE,
    'evaluate:jsonl-tiny': {'temperatures': (1.0,)},
    'score': MODEL | under('base', BASE) | under('stage1', REINFORCE) | under('stage2', REINFORCE)
             | under('evaluate', _EVALUATE),
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page: where it starts, its language, its text, and the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    how: str

    def __str__(self) -> str:
        return f'{self.page.name}:{self.line}'


def blocks(page: Path) -> list[Block]:
    """Those of a page that are run."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count('\n', 0, match.start('text'))
        if match['language'] in ('bash', 'python'):
            found.append(Block(page, line, match['language'], match['text'], match['how'] or ''))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(text: str) -> list[str]:
    """The lines of a bash block, those that end in a backslash joined with the next."""
    return [line for line in text.replace('\\\n', ' ').splitlines() if line.strip()]


def config_of(command: str) -> str | None:
    """`configs/FILE.py:PRESET` of a command that runs launch/main.py."""
    words = shlex.split(command, comments=True)
    if 'launch/main.py' not in words:
        return None
    return next(word.removeprefix('--config=') for word in words if word.startswith('--config='))


def shortened(command: str) -> str:
    """`command` with what SMALL has for its config."""
    config = config_of(command)
    if config is None:
        return command
    command = command.partition('  #')[0]
    name = Path(config).name.replace('.py', '')
    values = SMALL.get(name) or SMALL[name.partition(':')[0]]
    return ' '.join([command, *(shlex.quote(f'--config.{key}={value}') for key, value in values.items())])


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> Path:
    """A folder with the parts of this repository that a user's commands name."""
    folder = tmp_path_factory.mktemp('clone')
    for name in ('launch', 'configs', 'score_jax', 'benchmarks'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'bin').mkdir()
    (folder / 'bin' / 'python').write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (folder / 'bin' / 'python').chmod(0o755)
    return folder


def environment(clone: Path) -> dict[str, str]:
    """`python` is this one."""
    return helpers.environment(PATH=f'{clone / "bin"}:{os.environ["PATH"]}', PYTHONPATH=str(clone))


def run(clone: Path, *command: str) -> str:
    """What a command that must succeed printed."""
    done = subprocess.run(command, cwd=clone, env=environment(clone), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=_SECONDS)
    assert done.returncode == 0, f'{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return done.stdout


def visit(clone: Path, command: str) -> None:
    """Starts a server, fetches the page whose address it prints, and ends it."""
    command = f'exec {command.partition("  #")[0]} --port=0'
    server = subprocess.Popen(['bash', '-c', command], cwd=clone, env=environment(clone), stdout=subprocess.PIPE,
                              text=True)
    try:
        with urllib.request.urlopen(server.stdout.readline().split()[0], timeout=_SECONDS) as page:
            assert b'<title>score_jax</title>' in page.read()
    finally:
        server.terminate()
        server.communicate(timeout=_SECONDS)


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_what_a_page_says_to_run_runs(clone, block):
    """Later blocks build on earlier ones, those of README.md first: run this file as a whole."""
    if block.language == 'python':
        name = re.match(r'# (\w+\.py)\n', block.text)
        path = clone / (name[1] if name else f'block_{block.line}.py')
        path.write_text(block.text)
        if not name and not block.how.startswith('skip'):
            run(clone, 'python', path.name)
        return
    if block.how.startswith('skip'):
        for command in filter(config_of, commands(block.text)):
            run(clone, 'bash', '-euc', f'{command} --keys')
        return
    together = []
    for command in [*commands(block.text), '']:
        if together and (not command or 'launch/watch.py' in command):
            run(clone, 'bash', '-euo', 'pipefail', '-c', '\n'.join(together))
            together = []
        if 'launch/watch.py' in command:
            visit(clone, command)
        else:
            together.append(shortened(command) if block.how == 'small' else command)


def test_a_block_is_run_as_it_stands_or_says_how():
    for block in BLOCKS:
        assert block.how in ('', 'small') or re.match(r'skip \w+ \w+', block.how), f'{block}: {block.how!r}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page):
    text = page.read_text()
    for target in re.findall(r'\]\(([^)#\s]+)(?:#[^)]*)?\)', text):
        if '://' not in target:
            assert (page.parent / target).exists(), f'{page.name}: {target}'


def test_every_page_is_linked_from_the_readme():
    assert set(PAGES[1:]) == set((ROOT / 'docs').glob('*.md'))
