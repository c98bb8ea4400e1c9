"""Two-turn Stage I of Gemma 2 9B and Qwen2.5 7B on slices of 16 GB devices, compiled by abstract shapes: the memory of
one device, and what devices send each other. `python -m benchmarks.layouts [PRESET@SLICE ...]` runs some of them alone.

Each row is compiled in a process of its own, since jax makes its devices once; on one core it takes a minute or two.
It allocates nothing on a device, and needs neither the models' files nor the data.
"""

import json
import subprocess
import sys
from pathlib import Path

ROWS = (
    'math-gemma2-9b-lora@v5e-8', 'math-qwen2.5-7b-lora@v5e-8', 'math-gemma2-9b@v5e-64', 'math-qwen2.5-7b@v5e-64',
    'math-gemma2-9b@v5e-256', 'math-qwen2.5-7b@v5e-256')
_GIB = 2**30


def prove(row: str) -> dict:
    """Figures of one row, in GiB of one device."""
    from configs import stage1
    from score_jax import dry_run, plan, published, settings
    from score_jax.sharding import MeshConfig
    preset, name = row.split('@')
    section = stage1.get_config(preset)
    section.mesh.name = name
    plan.pretend(settings.read(MeshConfig, section.mesh, 'config.mesh'))
    work = published.work(section)
    made, programs = plan.plan(work), dry_run.compiled(work)
    planned, measured = dry_run.most(work, programs)
    figures = {
        'always': sum(made.always.values()), 'sampling': sum(made.sampling.values()),
        'update': sum(made.update.values()), 'planned': planned, 'compiled': measured}
    figures |= {f'{title} {part}': getattr(program, part) for title, program in programs.items()
                for part in ('arguments', 'temporaries')}
    return {'row': row, 'mesh': dict(work.learner.mesh.shape), 'rows': work.rows} | {
        'GiB': {key: round(value / _GIB, 2) for key, value in figures.items()},
        'sent': {title: dry_run.sent(title, program.collectives) for title, program in programs.items()}}


def main(rows) -> None:
    for row in rows or ROWS:
        done = subprocess.run(
            [sys.executable, '-m', 'benchmarks.layouts', '--prove', row], stdout=subprocess.PIPE, text=True, check=True,
            cwd=Path(__file__).resolve().parents[1])
        found = json.loads(done.stdout.splitlines()[-1])
        axes = ' x '.join(f'{name} {size}' for name, size in found['mesh'].items())
        print(f'{row}: {axes}, {found["rows"]} rows; GiB of one device')
        print('  ' + ', '.join(f'{key} {value}' for key, value in found['GiB'].items()))
        for title, lines in found['sent'].items():
            print(f'  {title}')
            print('\n'.join(f'    {line}' for line in lines), flush=True)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--prove']:
        print(json.dumps(prove(sys.argv[2])))
    else:
        main(sys.argv[1:])
