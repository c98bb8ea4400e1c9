"""What a dry run prints: layout, memory, arithmetic, and what the compiler makes of the same programs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from score_jax import accelerators, meshes, plan, rollout
from score_jax.collectives import Collective, collectives
from score_jax.meshes import show
from score_jax.plan import Work

# CPUs multiply bfloat16 in float32. What makes float32 copies of all weights before a loop, as no accelerator would, is
# left out.
_OPTIONS = {'xla_disable_hlo_passes': 'while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion'}
_USABLE = 0.95  # of a device's memory; the rest is the runtime's, the program's own, and what is between arrays


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as it is compiled for virtual CPUs: bytes of one device, and what devices send each other."""

    arguments: int
    temporaries: int
    collectives: list[Collective]


def compiled(work: Work) -> dict[str, Compiled]:
    """The update and the decode loop, by name."""
    learner, base = work.learner, plan.abstract_frozen(work)[1]
    decode = rollout.lower_decode(
        learner.whole(learner.abstract_params(), base), learner.model, work.sampler, learner.mesh, work.rows,
        work.slots, work.local_slots)
    found = {}
    for name, lowered in (('update', plan.lower_update(work)), ('decode loop', decode)):
        program = lowered.compile(compiler_options=_OPTIONS)
        memory = program.memory_analysis()
        found[name] = Compiled(
            memory.argument_size_in_bytes, memory.temp_size_in_bytes, collectives(program.as_text(), learner.mesh))
    return found


def most(work: Work, programs: dict[str, Compiled]) -> tuple[int, int]:
    """Bytes of one device at the worst moment: as planned, and as compiled."""
    made = plan.plan(work)
    always = sum(made.always.values())
    update, decode = programs['update'], programs['decode loop']
    kept = always - next(iter(made.always.values()))  # that the decode loop does not take
    if work.learner.lora:
        kept = made.always["optimiser (Adam's two moments)"]
    return always + max(sum(made.sampling.values()), sum(made.update.values())), max(
        update.arguments + update.temporaries, kept + decode.arguments + decode.temporaries)


def report(work: Work, name: str = '') -> str:
    """All of it, for a terminal; `name` is that of the devices, as in `score_jax.accelerators`."""
    made, mesh = plan.plan(work), work.learner.mesh
    lines = [
        f'{work.rows} rows of up to {sum(work.widths)} tokens on a mesh of {mesh.size} devices; '
        'nothing has been allocated.', '', meshes.table(work.learner, plan.beside(work)), '',
        'Memory of one device, as planned']
    for title, part in (('all the time', made.always), ('sampling', made.sampling), ('update', made.update)):
        lines += [f'  {title:<54}{show(sum(part.values()))}']
        lines += [f'    {line:<52}{show(size)}' for line, size in part.items()]
    devices = accelerators.named(name) if name else None
    lines += ['', 'Arithmetic of a step, all devices']
    for title, count in plan.flops(work).items():
        least = f', at least {count / devices.flops / devices.devices:,.1f} s on {name}' if devices else ''
        lines += [f'  {title:<54}{count / 1e12:>10,.2f} TFLOP{least}']
    programs = compiled(work)
    lines += ['', 'Memory of one device, as compiled for virtual CPUs (other devices lay out other temporaries)']
    for title, program in programs.items():
        lines += [f'  {title + ": arguments":<54}{show(program.arguments)}',
                  f'  {title + ": temporaries":<54}{show(program.temporaries)}']
    planned, measured = most(work, programs)
    lines += ['', 'At most, on one device']
    for title, size in (('as planned', planned), ('as compiled', measured)):
        lines += [f'  {title:<54}{show(size)}{_verdict(size, devices)}']
    for title, program in programs.items():
        lines += ['', f'Sent by a device, {title} (each array in whole, as often as it is sent)']
        lines += [f'  {line}' for line in sent(title, program.collectives)]
    return '\n'.join(lines)


def _verdict(size: int, devices: accelerators.Accelerators | None) -> str:
    if not devices:
        return ''
    fits = 'fits' if size <= _USABLE * devices.memory else 'does not fit'
    return f'  {fits} {_USABLE:.0%} of the {devices.memory / 2**30:,.0f} GiB of a device of {devices.name}'


def sent(program: str, found: Iterable[Collective]) -> list[str]:
    """A line for each kind of collective along the same axes."""
    again = {'update': 'each chunk of tokens', 'decode loop': 'each token'}[program]
    counts, sizes = collections.Counter(), collections.Counter()
    for one in found:
        key = one.kind, ', '.join(one.axes), again if one.again else ''
        counts[key] += one.count
        sizes[key] += one.count * one.size
    return [f'{kind:<20}{axes:<22}{counts[kind, axes, when]:>6} times {show(size)}  {when}'.rstrip()
            for (kind, axes, when), size in sorted(sizes.items(), key=lambda item: -item[1])] or ['nothing']
