"""Runs what a config asks for: `python launch/main.py --config=configs/score.py --workdir=runs/demo`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags, logging
from ml_collections import config_flags

from score_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file in configs/, and FILE.py:NAME for a preset of it.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/score', 'Where everything is written, and looked for.')
flags.mark_flag_as_required('config')


def parse(argv):
    """absl's own parsing; a config file or key that does not exist is answered in one sentence."""
    try:
        rest = app.parse_flags_with_usage(argv)
        _CONFIG.value.get('kind')
        return rest
    except AttributeError as error:
        given = ', '.join(word for word in argv if word.startswith('--config.'))
        print(f'{given}: no such key in the config; {str(error).splitlines()[-1].lower()}.', file=sys.stderr)
    except OSError:
        given = next((word for word in argv if word.startswith('--config=')), '--config')
        print(f'{given} cannot be read as a config file; configs/ has those of this project.', file=sys.stderr)
    sys.exit(2)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'not a flag: {" ".join(argv[1:])}')
    logging.set_verbosity(logging.WARNING)
    from score_jax.run import run  # after the flags are read, so that a mistake in them answers at once
    try:
        run(_CONFIG.value, Path(_WORKDIR.value))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
