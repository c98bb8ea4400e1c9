#!/usr/bin/env bash
# Teaches a tiny model to correct itself, from nothing: set-up, base, Stage I, Stage II, evaluation, report.
# Interrupted, it goes on where it stopped; further arguments go to launch/main.py (--config.seed=1, --workdir=...).
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
environment -r requirements.txt
exec .venv/bin/python launch/main.py --config=configs/score.py --workdir=runs/demo "$@"
