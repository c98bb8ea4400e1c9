"""A config that does not fit its dataclass is refused in one sentence that names the key and the way out."""

from __future__ import annotations

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from score_jax import settings
from score_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    width: int
    rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    tied: bool
    steps: int
    limit: int | None
    rates: tuple[float, ...]
    inner: Inner
    free: dict


GOOD = dict(name='a', tied=True, steps=3, limit=None, rates=(1, 0.5), inner=dict(width=4, rate=1), free=dict(x=1))


def refusal(**changes) -> str:
    """What `read` says of `GOOD` with `changes`, where `...` takes a key away."""
    section = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    with pytest.raises(UserError) as error:
        settings.read(Outer, section)
    text = str(error.value)
    assert '\n' not in text and text[-1] in '.?' and '. ' not in text
    return text


@pytest.mark.parametrize('wrap', [dict, ConfigDict])
def test_a_good_section_becomes_the_dataclass(wrap):
    outer = settings.read(Outer, wrap(GOOD))
    assert outer == Outer(name='a', tied=True, steps=3, limit=None, rates=(1.0, 0.5), inner=Inner(width=4, rate=1.0),
                          free={'x': 1})
    assert type(outer.inner.rate) is float and all(type(rate) is float for rate in outer.rates)


def test_an_unknown_key_is_named_with_the_nearest():
    text = refusal(inner=dict(widht=4, rate=1))
    assert 'config.inner.widht' in text and 'did you mean width?' in text


def test_an_unknown_key_like_no_other_is_named_with_all_there_are():
    text = refusal(zzz=4)
    assert 'config.zzz' in text and all(key in text for key in GOOD)


@pytest.mark.parametrize('key', GOOD)
def test_a_missing_key_is_named(key):
    assert f'config.{key} is missing' in refusal(**{key: ...})


def test_a_missing_key_of_a_nested_section_is_named_in_full():
    assert 'config.inner.rate is missing' in refusal(inner=dict(width=4))


@pytest.mark.parametrize('key, value', [
    ('name', 3), ('name', None), ('tied', 1), ('steps', '3'), ('steps', 3.0), ('steps', True), ('steps', None),
    ('limit', 'none'), ('rates', 0.5), ('rates', 'ab'), ('inner', 3), ('free', 3), ('free', None)])
def test_a_value_of_another_type_is_named_and_shown(key, value):
    text = refusal(**{key: value})
    assert f'config.{key}' in text and repr(value) in text


@pytest.mark.parametrize('inner, key', [
    (dict(width=True, rate=1.0), 'width'), (dict(width=4, rate='fast'), 'rate'), (dict(width=4, rate=True), 'rate')])
def test_a_nested_value_of_another_type_is_named_in_full(inner, key):
    assert f'config.inner.{key} is {inner[key]!r}' in refusal(inner=inner)


def test_an_entry_of_another_type_is_named_by_its_place():
    assert "config.rates[1] is 'x'" in refusal(rates=(1.0, 'x'))


def test_plain_values_survive_json():
    plain = settings.plain(ConfigDict(GOOD))
    assert json.loads(json.dumps(plain)) == plain
    assert plain['rates'] == [1, 0.5] and plain['inner'] == {'width': 4, 'rate': 1}


def test_differences_name_every_key_that_differs_and_no_other():
    new = settings.plain(GOOD | dict(steps=4, inner=dict(width=5, rate=1), extra=1))
    assert settings.differences(settings.plain(GOOD), new) == [
        'config.extra: (absent) -> 1', 'config.inner.width: 4 -> 5', 'config.steps: 3 -> 4']
    assert settings.differences(new, new) == []
