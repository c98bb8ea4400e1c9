"""Runs what a config asks for: `python launch/main.py --config=configs/score.py --workdir=runs/demo`.

`--keys` prints every key of the config, its value and its meaning, and runs nothing.
"""

import importlib
import re
import shlex
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging
from ml_collections import config_flags

from score_jax import allocation, health
from score_jax.errors import UserError
from score_jax.settings import SHARED

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file in configs/, and FILE.py:NAME for a preset of it.')
_WORKDIR = flags.DEFINE_string(
    'workdir', 'runs/score',
    'Where everything is written, and looked for: a folder; for one process also an address such as gs://BUCKET/RUN.')
_KEYS = flags.DEFINE_bool('keys', False, 'Print every key of the config with its value and meaning, and run nothing.')
_PROCESSES = flags.DEFINE_string(
    'processes', '1', 'How many processes run this command together; auto: as a TPU pod, GKE, SLURM or Open MPI says.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which of them this one is, from 0 on.')
_COORDINATOR = flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0, where the others find it.')
flags.mark_flag_as_required('config')

# What to run behind a config of configs/; presets of some are stages that the evaluation must be told of.
_NEXT = {'base': 'stage1', 'stage1': 'stage2', 'stage1b': 'stage2', 'stage2': 'evaluate', 'ablation': 'evaluate',
         'baselines': 'evaluate'}
_NAMED = ('ablation', 'baselines')


def parse(argv):
    """absl's own parsing; a config file or key that does not exist is answered in one sentence.

    The section `mesh` itself may be given a name: `--config.mesh=v5p-128` is `--config.mesh.name=v5p-128`.
    """
    # In place: what reads the flags of configs looks at sys.argv.
    argv[:] = [re.sub(r'^(--?config(?:\.\w+)*\.mesh)=(?!\{)', r'\1.name=', word) for word in argv]
    try:
        rest = app.parse_flags_with_usage(argv)
        _CONFIG.value.get('kind')
        return rest
    except AttributeError as error:
        given = ', '.join(word for word in argv if word.startswith('--config.'))
        if not given:
            raise  # a fault of the config file itself, which the traceback shows
        print(f'{given}: no such key in the config; {str(error).splitlines()[-1].lower()}.', file=sys.stderr)
    except OSError:
        given = next((word for word in argv if word.startswith('--config=')), '--config')
        if Path(given.removeprefix('--config=').partition(':')[0]).is_file():
            raise  # what cannot be read is something that it reads
        print(f'{given} cannot be read as a config file; configs/ has those of this project.', file=sys.stderr)
    sys.exit(2)


def following(workdir: str) -> str:
    """The next command: the next stage, with this one's preset and shared keys; with results, how to look at them."""
    path, _, preset = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    place = f'--workdir={shlex.quote(workdir)}'
    name = _NEXT.get(Path(path).stem)
    if Path(path).stem == 'study':
        return f'python launch/watch.py {place}'
    if not name:
        return f'python launch/try.py {place}\n         python launch/watch.py {place}'
    given = config_flags.get_override_values(flags.FLAGS['config'])
    shared = ''.join(
        f' {shlex.quote(f"--config.{key}={value}")}' for key, value in given.items() if key.split('.')[0] in SHARED)
    if Path(path).stem == 'stage1b':
        preset = 'three_turns'
    elif Path(path).stem in _NAMED:
        shared += ' ' + shlex.quote(f'--config.methods=({preset!r},)')
    preset = f':{preset}' if preset in importlib.import_module(f'configs.{name}').PRESETS else ''
    return f'python launch/main.py --config=configs/{name}.py{preset} {place}{shared}'


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'not a flag: {" ".join(argv[1:])}')
    logging.set_verbosity(logging.WARNING)
    # What Orbax logs as an error, with the traceback of a thread, it also raises.
    logging.get_absl_logger().addFilter(lambda record: '/orbax/' not in record.pathname)
    if _KEYS.value:
        from score_jax import keys
        keys.show(_CONFIG.value, Path(config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(health.RESTART))  # where no step waits to be finished and saved
    allocation.keep()
    from score_jax import processes  # after the flags are read, so that a mistake in them answers at once
    processes.end(_run(processes))


def _run(processes) -> int:
    """The exit code."""
    from score_jax import compilation
    from score_jax.run import run
    compilation.use_cublas()
    compilation.keep()
    try:
        processes.start(_PROCESSES.value, _PROCESS.value, _COORDINATOR.value)
        try:
            run(_CONFIG.value, _WORKDIR.value)
        except Exception as error:
            processes.check(error)
            raise
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except (health.Interrupted, processes.Lost) as stop:
        print(stop, file=sys.stderr)
        return getattr(stop, 'exit_code', health.RESTART)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stop:  # a signal, between two stages or in an evaluation
        return stop.code
    except Exception:
        traceback.print_exc()
        return 1
    if not _CONFIG.value.get('dry_run') and processes.first():
        print(f'next:    {following(_WORKDIR.value)}')
    return 0


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
