"""Every public piece of the package says what it is, which errors it raises, and the shapes of its arrays."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'score_jax').rglob('*.py'))
_ARRAY = re.compile(r'\b(jax\.Array|jnp\.ndarray|np\.ndarray)\b')
# Parameters that are arrays wherever they have these names; they often have no annotation.
_ARRAYS = {'correct', 'changed', 'logits', 'log_probs', 'hidden', 'positions', 'rewards'}
_SHAPE = re.compile(r'\[[^\]`]*\]')  # [B, T], [P][K], [..., V], [N + 1], []
_ERROR = 'UserError'

Definition = ast.FunctionDef | ast.ClassDef


def public(path: Path) -> Iterator[tuple[str, Definition, ast.ClassDef | None]]:
    """(where, definition, its class) of every public function, class and method of a file."""
    waiting = [(ast.parse(path.read_text()), None)]
    while waiting:
        parent, of = waiting.pop()
        for node in parent.body:
            if isinstance(node, Definition) and not node.name.startswith('_'):
                name = f'{of.name}.{node.name}' if of else node.name
                yield f'{path.relative_to(ROOT)}:{node.lineno} {name}', node, of
                if isinstance(node, ast.ClassDef):
                    waiting.append((node, node))


EVERYTHING = [found for path in FILES for found in public(path)]
FUNCTIONS = [found for found in EVERYTHING if isinstance(found[1], ast.FunctionDef)]


def documentation(node: ast.AST) -> str:
    return ast.get_docstring(node) or ''


def raises(function: ast.FunctionDef) -> bool:
    """Whether its own body has `raise UserError(...)`."""
    return any(isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
               and getattr(node.exc.func, 'id', '') == _ERROR for node in ast.walk(function))


def has_arrays(function: ast.FunctionDef) -> bool:
    """Whether it takes or gives arrays, as far as annotations and names tell."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments = [one for one in arguments if one.arg != 'key']  # of the random numbers
    annotations = [ast.unparse(node) for node in [*(one.annotation for one in arguments), function.returns] if node]
    return any(map(_ARRAY.search, annotations)) or any(
        one.arg in _ARRAYS and one.annotation is None for one in arguments)


def unsaid(found: Iterator[str]) -> None:
    """Fails with the list of what is found."""
    missing = list(found)
    assert not missing, '\n'.join(missing)


def test_every_module_says_what_it_is():
    unsaid(str(path) for path in FILES if path.read_text().strip() and not documentation(ast.parse(path.read_text())))


def test_every_public_function_class_and_method_has_a_docstring():
    """A method may leave it to the one of its base class that it stands for."""
    said = {(of.name, node.name) for _, node, of in EVERYTHING if of and documentation(node)}
    unsaid(where for where, node, of in EVERYTHING if not documentation(node)
           and not any((getattr(base, 'id', ''), node.name) in said for base in (of.bases if of else ())))


def test_every_function_that_raises_a_users_error_says_so():
    unsaid(where for where, node, _ in FUNCTIONS if raises(node) and _ERROR not in documentation(node))


def test_every_function_of_arrays_gives_shapes():
    """In its own docstring, or where its class speaks of them."""
    unsaid(where for where, node, of in FUNCTIONS
           if has_arrays(node) and not _SHAPE.search(documentation(node) + (documentation(of) if of else '')))


def test_every_field_that_is_an_array_has_a_shape():
    """Where its class speaks of it, or in a comment behind it."""
    def without() -> Iterator[str]:
        for path in FILES:
            lines = path.read_text().splitlines()
            for where, node, _ in public(path):
                if isinstance(node, ast.ClassDef) and not _SHAPE.search(documentation(node)):
                    yield from (
                        f'{where}.{field.target.id}' for field in node.body
                        if isinstance(field, ast.AnnAssign) and _ARRAY.search(ast.unparse(field.annotation))
                        and not _SHAPE.search(lines[field.end_lineno - 1].partition('#')[2]))
    unsaid(without())


@pytest.mark.parametrize('source, told', [
    ("def f(x: jax.Array): 'Doubles it.'", False), ("def f(x: jax.Array): 'Doubles `x` `[B, T]`.'", True),
    ("def f(correct): 'The mean.'", False), ("def f(names: list[str]): 'The first.'", True)])
def test_what_the_check_of_shapes_finds(source, told):
    function = ast.parse(source).body[0]
    assert told == bool(not has_arrays(function) or _SHAPE.search(documentation(function)))
