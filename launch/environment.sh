# Sourced by the scripts beside it: makes .venv with what `pip install` is given, once for each set of arguments.
# PYTHON chooses the interpreter (3.11 or newer).

environment() {
  local python=${PYTHON:-python3} stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is older than Python 3.11; name a newer one, as in PYTHON=python3.12 bash $0" >&2
    exit 2
  }
  stamp=.venv/$(printf '%s\n' "$@" | cat - requirements.txt pyproject.toml | cksum | tr -d ' ').installed
  [ -e "$stamp" ] && return
  [ -e .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=24'  # older ones warn of what is in order
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
  touch "$stamp"
}
