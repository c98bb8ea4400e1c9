"""Configs into frozen dataclasses: every key is declared, every declared key is read.

`configs/*.py` hold the values with their comments; the dataclasses say which keys exist and their types.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping

from score_jax.errors import UserError

SHARED = ('seed', 'task', 'pretrained', 'tokenizer', 'chat', 'model', 'mesh')  # keys that the stages of a workdir share


def read(cls, section: Mapping, path: str = 'config', **derived):
    """The dataclass `cls` from the keys of `section`, nested dataclasses from nested sections.

    `derived` are fields that follow from elsewhere and are no keys.

    Raises:
      UserError: names a key that is unknown (with the nearest that exists), missing, or of another type.
    """
    if not isinstance(section, Mapping) and not hasattr(section, 'items'):
        raise UserError(f'{path} is {section!r}; it must be a section of keys.')
    fields = {field.name for field in dataclasses.fields(cls)} - derived.keys()
    hints = typing.get_type_hints(cls)
    for key in sorted(set(section.keys()) - fields):
        near = difflib.get_close_matches(key, fields, n=1)
        advice = f'did you mean {near[0]}?' if near else f'known keys are {", ".join(sorted(fields))}.'
        raise UserError(f'{path}.{key} is not a key that anything reads; {advice}')
    for key in sorted(fields - set(section.keys())):
        raise UserError(f'{path}.{key} is missing; configs/common.py has its default.')
    return cls(**{key: _convert(hints[key], section[key], f'{path}.{key}') for key in fields}, **derived)


def _convert(kind, value, path: str):
    if dataclasses.is_dataclass(kind):
        return read(kind, value, path)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (tuple, list)):
            raise UserError(f'{path} is {value!r}; it must be a tuple.')
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, entry, f'{path}[{i}]') for i, entry in enumerate(value))
    if kind is dict:
        if not hasattr(value, 'items'):
            raise UserError(f'{path} is {value!r}; it must be a section of keys.')
        return dict(value)
    if isinstance(kind, types.UnionType):
        kinds = typing.get_args(kind)
        return None if value is None and type(None) in kinds else _convert(kinds[0], value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f'{path} is {value!r}; it must be of type {kind.__name__}.')
    return value


def plain(section) -> dict:
    """A config section as plain JSON-compatible values (tuples become lists), for saving and comparing."""
    if hasattr(section, 'items'):
        return {key: plain(value) for key, value in section.items()}
    if isinstance(section, (tuple, list)):
        return [plain(value) for value in section]
    return section


def differences(old: Mapping, new: Mapping, path: str = 'config') -> list[str]:
    """`path: old -> new` for every key whose value differs between two plain configs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key, '(absent)'), new.get(key, '(absent)'), f'{path}.{key}'
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, name)
        elif a != b:
            lines.append(f'{name}: {a} -> {b}')
    return lines
