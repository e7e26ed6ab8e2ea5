# shellcheck shell=bash
# Sourced by the scripts beside it: printing instead of running, and what every one of them needs.

PRINT=""

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

die() {
  echo "error: $*" >&2
  exit 2
}

# Runs a command, or with --print shows it as it could be typed.
run() {
  if [ -n "$PRINT" ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# Names of variables that must be set.
need() {
  local name
  for name in "$@"; do
    [ -n "${!name:-}" ] || die "$name is not set; see --help"
  done
}

# What follows `--` is for experiments.train: a line of it, quoted for a shell. The run's exit code
# says that it was stopped before its last step, which whoever starts it takes for "start it again".
train_command() {
  [ "${1:-}" = -- ] || die "give the flags of experiments.train after --"
  shift
  [ $# -gt 0 ] || die "give the flags of experiments.train after --, at least --config and --workdir"
  printf '%q ' python -m experiments.train --distributed --stopped_exit_code=42 "$@" | sed 's/ $//'
}
