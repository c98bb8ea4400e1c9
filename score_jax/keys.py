"""Every key of a config, with its value and the comment that stands beside it in the config file.

The comments are read from the source, so that a key has its meaning in one place:

    config.seed = 0  # behind the value
    # or in lines of their own above it
    config.habits = ConfigDict(dict(
        solve=0.6,  # of habits.solve
    ))
    def sampling(): return ConfigDict(dict(...))    of rollout.*, where some file has config.rollout = sampling()
    _MATHS = dict(...)                              of any section
    **symbols,  # alpha: of alpha; beta1, beta2: of both
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

_ANY = '*'  # the section of a key that stands in a dict of no section
_LONGEST = 60  # characters of a value


def show(config: Mapping, path: Path) -> None:
    """Prints a table of the keys of `config`, which the config file at `path` made."""
    meanings = comments(path)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ('key', 'value', 'meaning'):
        table.add_column(title, overflow='fold')
    for key, value, meaning in _rows(config, meanings):
        table.add_row(Text(key, 'bold'), Text(value), Text(meaning))
    console = Console(highlight=False)
    Console(width=None if console.is_terminal else 120, highlight=False).print(table)


def _rows(config: Mapping, meanings: Mapping[str, str], section: str = '') -> Iterator[tuple[str, str, str]]:
    for name, value in config.items():
        key = f'{section}.{name}' if section else name
        meaning = meanings.get(key, meanings.get(f'{_ANY}.{name}', '') if section else '')
        if not hasattr(value, 'items'):
            text = repr(value)
            yield key, text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...', meaning
        elif 'kind' in value:  # the whole config of another stage
            yield f'{key}.*', '', meaning or f'the keys of configs/{name}.py'
        else:
            if meaning or not value:
                yield key, '' if value else '(none)', meaning
            yield from _rows(value, meanings, key)


def comments(path: Path) -> dict[str, str]:
    """What the config file at `path`, and those that it imports, say of their keys: `{'objective.alpha': ...}`.

    A key that none of them explains is ''; `'*.name'` is one of a dict of no section. Where several speak of a key the
    file itself goes first, then the one that it takes its config from.
    """
    files = _files(path)
    makers = {name: section for file in files for name, section in file.makers()}
    found: dict[str, str] = {}
    for file in files:
        for key, comment in file.comments(makers):
            found[key] = found.get(key) or comment
    return found


def _files(path: Path) -> list[_File]:
    """The file, the one whose function makes its `config`, and so on; then all others that these import."""
    file = _File(path)
    chain = {path: file}
    while (source := file.source()) and source not in chain:
        chain[source] = file = _File(source)
    waiting = [imported for file in chain.values() for imported in file.imports.values()]
    while waiting:
        if (path := waiting.pop(0)) not in chain:
            chain[path] = _File(path)
            waiting += chain[path].imports.values()
    return list(chain.values())


class _File:
    """A config file as a syntax tree, with its comments by line."""

    def __init__(self, path: Path):
        text = path.read_text()
        self._tree = ast.parse(text)
        self._behind, self._above = {}, {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                line, column = token.start
                alone = not token.line[:column].strip()
                (self._above if alone else self._behind)[line] = token.string.lstrip('# ')
        self.imports = {
            alias.name: Path(module.__file__) for node in ast.walk(self._tree) if isinstance(node, ast.ImportFrom)
            for alias in node.names if (module := sys.modules.get(f'{node.module}.{alias.name}'))}

    def source(self) -> Path | None:
        """The file whose function the first `config = ...` calls."""
        for node in _assignments(self._tree):
            if _target(node) == 'config':
                for call in ast.walk(node.value):  # such as common.preset(common.shared(), ...): any of them will do
                    if isinstance(call, ast.Attribute) and getattr(call.value, 'id', None) in self.imports:
                        return self.imports[call.value.id]
        return None

    def makers(self) -> Iterator[tuple[str, str]]:
        """Functions that make a section: `config.rollout = common.sampling()` is ('sampling', 'rollout')."""
        for node in _assignments(self._tree):
            if isinstance(node.value, ast.Call) and _target(node).startswith('config.'):
                function = node.value.func
                yield getattr(function, 'attr', getattr(function, 'id', '')), _target(node).removeprefix('config.')

    def comments(self, makers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """(key, comment) of every key, '' without one."""
        for top in self._tree.body:
            section = makers.get(top.name, _ANY) if isinstance(top, ast.FunctionDef) else _ANY
            inside = set()
            for node in _assignments(top):
                if _target(node).startswith('config.'):
                    key = _target(node).removeprefix('config.')
                    yield from self._of(key, node.lineno, node.end_lineno)
                    yield from self._keywords(node.value, key)
                    inside |= {id(child) for child in ast.walk(node)}
            for node in ast.walk(top):
                if id(node) not in inside and isinstance(node, ast.Call):
                    yield from self._keywords(node, section)

    def _keywords(self, tree: ast.AST, section: str) -> Iterator[tuple[str, str]]:
        """Those of the keywords of a call to `dict` in `tree`, each on a line of its own."""
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'dict':
                lines = [keyword.lineno for keyword in call.keywords]
                for keyword in call.keywords:
                    if lines.count(keyword.lineno) == 1 and keyword.lineno != call.lineno:
                        for name, comment in self._of(keyword.arg, keyword.lineno, keyword.end_lineno):
                            yield f'{section}.{name}', comment

    def _of(self, name: str | None, first: int, last: int) -> Iterator[tuple[str, str]]:
        comment = self._behind.get(first) or self._behind.get(last)
        if name is None:  # **symbols
            for part in (comment or '').split(';'):
                names, _, meaning = part.partition(':')
                yield from ((name, meaning.strip()) for name in re.findall(r'\w+', names))
            return
        if not comment:
            above = first
            while above - 1 in self._above:
                above -= 1
            comment = ' '.join(self._above[line] for line in range(above, first))
        yield name, comment


def _assignments(tree: ast.AST) -> Iterator[ast.Assign]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Assign))


def _target(node: ast.Assign) -> str:
    return ast.unparse(node.targets[0])
