"""Writes the report of a run: `python launch/report.py --workdir=RUN` prints the path of RUN/report.html."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

from score_jax import mirror, report
from score_jax.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'Directory that launch/main.py wrote, or its address.', required=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'not a flag: {" ".join(argv[1:])}')
    try:
        print(report.write(mirror.look(WORKDIR.value, checkpoints=False)))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    app.run(main)
