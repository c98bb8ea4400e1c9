"""What devices send each other in a compiled program: counted in its text, loops as often as they run.

The text is that of `Compiled.as_text()`: computations that call each other, of which a loop over layers says how often
it runs. A loop that does not (over the tokens of a response, or over chunks of what was sampled) counts once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

KINDS = ('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute')

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(')
_CALLED = re.compile(r'\b(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r'\b(pred|bf16|[a-z]+\d+)\w*\[([\d,]*)\]')
_LISTED = re.compile(r'(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}')
_IOTA = re.compile(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?')
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: one of `KINDS`.
      axes: of the mesh, that the devices which talk to each other lie along.
      size: bytes of the array in whole: what a gather gives a device, or what a device brings to a reduction.
      count: how often it runs.
      again: whether it stands in a loop that does not say how often it runs.
      name: the operation of the program that it serves.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    count: int
    again: bool
    name: str


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Those of a compiled program over all devices of `mesh`; what only one device takes part in is none."""
    computations, entry = _computations(text)
    found = list(_walk(computations, entry, 1, False, mesh))
    return [one for one in found if one.axes]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    computations, entry, lines = {}, '', []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _walk(computations, name: str, count: int, again: bool, mesh: Mesh) -> Iterator[Collective]:
    for line in computations[name]:
        if match := _COLLECTIVE.search(line):
            group = _group(line)
            name_of = _NAME.search(line)
            yield Collective(
                kind=match[2], axes=_axes(group, mesh), size=_size(match[1], match[2], line, len(group)), count=count,
                again=again, name=name_of[1] if name_of else '')
        if ' while(' in line:
            trips = _TRIPS.search(line)
            inner = count * int(trips[1]) if trips else count, again or not trips
        else:
            inner = count, again
        branches = _BRANCHES.search(line)
        for called in _CALLED.findall(line) + (re.findall(r'[\w.-]+', branches[1]) if branches else []):
            if called in computations:
                yield from _walk(computations, called, *inner, mesh)


def _size(types: str, kind: str, line: str, group: int) -> int:
    """From the types of the result; that of an asynchronous start has what it takes beside what it gives."""
    arrays = [
        _width(dtype) * math.prod(int(n) for n in shape.split(',') if n) for dtype, shape in _ARRAY.findall(types)]
    whole = max(arrays) if f' {kind}-start(' in line else sum(arrays)
    return whole * group if kind == 'reduce-scatter' else whole


def _width(dtype: str) -> int:
    return 1 if dtype == 'pred' else -(-int(re.search(r'\d+', dtype)[0]) // 8)


def _group(line: str) -> list[int]:
    """The devices of the first group that talk to each other; XLA has three ways to write groups down."""
    if match := _LISTED.search(line):  # {{0,1},{2,3}}
        return [int(n) for n in match[1].split(',')]
    if match := _IOTA.search(line):  # [4,2]<=[2,2,2]T(1,0,2): four groups of two
        shape, grid, order = (_numbers(part or '') for part in match.groups())
        return np.transpose(np.arange(math.prod(grid)).reshape(grid), order or None).reshape(shape)[0].tolist()
    match = _NAMED.search(line)  # mesh['a'=4,'b'=2] {'a':(1)2}: along the first half of a
    sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
    grid, grouped = [], []
    parts = {name: (pre, size) for name, pre, size in re.findall(r"('\w+')(?::\((\d+)\)(\d+))?", match[4])}
    for name, size in sizes.items():
        before, inside = map(int, parts.get(name, ('1', '1')) if parts.get(name) != ('', '') else ('1', size))
        grid += [before, inside, int(size) // (before * inside)]
        grouped += [False, True, False]
    shape, order = (_numbers(part or '') for part in match.groups()[1:3])
    devices = np.arange(math.prod(grid))
    if shape:
        devices = np.transpose(devices.reshape(shape), order or None)
    return devices.reshape(grid)[tuple(slice(None) if one else 0 for one in grouped)].ravel().tolist()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(',') if n)


def _axes(group: list[int], mesh: Mesh) -> tuple[str, ...]:
    places = np.unravel_index(group, mesh.devices.shape)
    return tuple(name for name, along in zip(mesh.axis_names, places) if len(set(along.tolist())) > 1)
