#!/usr/bin/env bash
# Runs the tests; with --reference also those against torch and transformers, which it installs.
# Further arguments go to pytest (-k, -x, a file).
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
packages=(-r requirements.txt 'pytest>=8,<10' 'pytest-xdist>=3.6,<4')
if [ "${1:-}" = --reference ]; then
  shift
  packages+=(torch==2.13.0 'transformers>=4.57,<6')
  export SCORE_JAX_REFERENCE=1
fi
environment "${packages[@]}"
# Two at a time, a file in one process: its fixtures are made once, and later tests of docs build on earlier ones.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
