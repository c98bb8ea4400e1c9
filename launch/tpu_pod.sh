#!/usr/bin/env bash
# Runs launch/main.py on all workers of a Cloud TPU slice, and again after each preemption, until it is done:
#
#   bash launch/tpu_pod.sh NAME --type=v5litepod-64 --zone=us-west4-a --bucket=BUCKET [--spot] -- \
#     --config=configs/stage1.py:math-gemma2-9b --config.pretrained=/bucket/gemma-2-9b-it --workdir=/bucket/runs/mine
#
# It asks for the slice (a queued resource, so it waits its turn), sets the workers up, mounts the bucket at /bucket,
# and starts a process on each. Exit code 75 (a signal, the state is saved), 134, 137 and a slice that is gone: again.
# What is committed (git HEAD) is what runs. The slice stays when the run is done; `bash launch/tpu_pod.sh NAME --delete
# --zone=ZONE` gives it back. Needs gcloud with a project, and must keep running itself: in tmux, or on a small VM.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

name=${1:-}
case $name in '' | -*) usage ;; esac
shift
type='' zone='' bucket='' runtime='' delete='' extra=()
while [ $# -gt 0 ]; do
  case $1 in
    --type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) extra+=(--spot) ;;
    --delete) delete=1 ;;
    --) shift && break ;;
    *) echo "tpu_pod.sh: unknown flag $1; flags of launch/main.py come behind --" >&2 && exit 2 ;;
  esac
  shift
done
[ -n "$zone" ] || usage
poll=${POLL_SECONDS:-30}

queue() { gcloud compute tpus queued-resources "$@" --zone="$zone" --quiet; }
on() { # WORKERS COMMAND
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}
state() { queue describe "$name" --format='value(state.state)' 2>/dev/null || echo MISSING; }

if [ -n "$delete" ]; then
  queue delete "$name" --force
  exit
fi
if [ -z "$type" ] || [ -z "$bucket" ] || [ $# = 0 ]; then usage; fi
if [ -z "$runtime" ]; then # https://cloud.google.com/tpu/docs/runtimes
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi

wait_for_slice() {
  local now last=''
  while now=$(state) && [ "$now" != ACTIVE ]; do
    [ "$now" = "$last" ] || echo "tpu_pod.sh: $name is $now"
    last=$now
    case $now in
      MISSING)
        queue create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" "${extra[@]}"
        ;;
      FAILED | SUSPENDED) queue delete "$name" --force ;;
      *) sleep "$poll" ;;
    esac
  done
}

set_up() { # the code, its environment, and the bucket; what is there already stays
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:score_jax.tar.gz" --zone="$zone" --worker=all || return 1
  rm -f "$archive"
  # shellcheck disable=SC2016  # $USER is the worker's
  on all 'set -e
mkdir -p score_jax && tar xzf score_jax.tar.gz -C score_jax
if ! command -v gcsfuse >/dev/null; then
  packages=https://packages.cloud.google.com/apt
  curl -fsS $packages/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
  echo "deb $packages gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse python3.11-venv
fi
sudo mkdir -p /bucket && sudo chown "$USER" /bucket
mountpoint -q /bucket || gcsfuse --implicit-dirs --rename-dir-limit=100000 '"$(printf %q "$bucket")"' /bucket
cd score_jax
PYTHON=python3.11 bash -c ". launch/environment.sh; environment -r requirements.txt \"jax[tpu]\""'
}

run() { # prints the exit code of the run; nothing where the workers cannot be reached
  local main=".venv/bin/python launch/main.py --processes=auto $*"
  on all "cd score_jax && rm -f exit_code && { $main; echo \$? > exit_code; }" >&2 || true
  on 0 'cat score_jax/exit_code' 2>/dev/null || true
}

while true; do
  wait_for_slice
  if ! set_up; then
    echo "tpu_pod.sh: the workers of $name could not be set up; once more" >&2
    sleep "$poll"
    continue
  fi
  code=$(run "$(printf '%q ' "$@")")
  case $code in
    75 | 134 | 137 | '')
      echo "tpu_pod.sh: stopped (${code:-no answer}, $name is $(state)); it goes on from its last checkpoint"
      ;;
    *) exit "$code" ;;
  esac
  sleep "$poll"
done
