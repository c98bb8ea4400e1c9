"""Answers as data: plain built-in values as JSON, in which all but null, booleans, text and common numbers is tagged.

    1, 0.5, 'a', None  ->  1, 0.5, "a", null        [1, (2,)]  ->  ["l", 1, ["t", 2]]        {'a': 1}  ->  ["d", "a", 1]

`encode` runs beside the program, and writes or gives up. `decode` runs on the trusted side and builds exact built-in
types alone, whatever it is sent. An instance of a subclass is sent as what it is a subclass of, an iterator as the
list of what it yields.
"""

try:  # json itself takes longer to import than a program to run
    from _json import encode_basestring_ascii as _quote
except ImportError:
    from json.encoder import py_encode_basestring_ascii as _quote

DEEPEST = 100  # containers in containers
_LONGEST_INTEGER = 1 << 17  # bits; arithmetic on the trusted side stays quick
_PLAIN_INTEGER = 1 << 63
_ITERATORS = (type(iter([])), type(x for x in ()), map, filter, zip, enumerate, reversed, range, type({}.keys()),
              type({}.values()), type({}.items()))
_CONTAINERS = {'l': list, 't': tuple, 's': set, 'z': frozenset, 'i': iter}


class NotData(Exception):
    """A value that is no data, or not within the limits; the message says which."""


def encode(value, largest: int) -> str:
    """JSON of at most about `largest` characters; raises `NotData`, or what an iterator or a subclass raises."""
    words: list[str] = []
    room = largest

    def put(word: str) -> None:
        nonlocal room
        room -= len(word) + 1
        if room < 0:
            raise NotData('too large')
        words.append(word)

    def write(value, depth: int) -> None:
        if depth > DEEPEST:
            raise NotData('nested too deep')
        if value is None or value is True or value is False:
            put('null' if value is None else 'true' if value else 'false')
        elif isinstance(value, int):
            value = int.__index__(value)
            if -_PLAIN_INTEGER <= value < _PLAIN_INTEGER:
                put(int.__repr__(value))
            else:
                if int.bit_length(value) > _LONGEST_INTEGER:
                    raise NotData('too large')
                put(f'["n","{value:x}"]')
        elif isinstance(value, float):
            text = float.__repr__(value)
            put(text if value - value == 0 else f'["f","{text}"]')
        elif isinstance(value, str):
            put(_quote(str.__str__(value)))
        elif isinstance(value, complex):
            put(f'["c","{float.__repr__(value.real)}","{float.__repr__(value.imag)}"]')
        elif isinstance(value, (bytes, bytearray)):
            put(f'["{"b" if isinstance(value, bytes) else "a"}","{value.hex()}"]')
        elif isinstance(value, dict):
            items = (part for item in dict.items(value) for part in item)
            sequence('d', items, depth)
        else:
            for tag, kind in (('l', list), ('t', tuple), ('s', set), ('z', frozenset)):
                if isinstance(value, kind):
                    return sequence(tag, kind.__iter__(value), depth)
            if not isinstance(value, _ITERATORS):
                raise NotData(f'a {type(value).__name__} is no plain value')
            sequence('i', value, depth)

    def sequence(tag: str, items, depth: int) -> None:
        put(f'["{tag}"')
        for item in items:
            words.append(',')
            write(item, depth + 1)
        words.append(']')

    write(value, 0)
    return ''.join(words)


def decode(value):
    """The plain value that `value`, JSON as parsed, stands for; raises `ValueError` for what `encode` never writes."""
    return _decode(value, 0)


def _decode(value, depth: int):
    if type(value) is not list:
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise ValueError('a JSON object')
    if depth > DEEPEST or not value:
        raise ValueError('nested too deep, or without a tag')
    match value:
        case ['n', str(text)] if len(text) <= _LONGEST_INTEGER // 4 + 1:
            return int(text, 16)
        case ['f', 'nan' | 'inf' | '-inf' as text]:
            return float(text)
        case ['c', str(real), str(imag)]:
            return complex(float(real), float(imag))
        case ['b', str(text)]:
            return bytes.fromhex(text)
        case ['a', str(text)]:
            return bytearray.fromhex(text)
    tag, *items = value
    items = [_decode(item, depth + 1) for item in items]
    try:
        if tag == 'd' and len(items) % 2 == 0:
            return dict(zip(items[::2], items[1::2]))
        return _CONTAINERS[tag](items)
    except (KeyError, TypeError) as error:  # no such tag, or a list in a set
        raise ValueError(f'not an encoded value: {error}') from None
