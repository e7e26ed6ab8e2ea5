#!/usr/bin/env bash
# Runs training on a TPU slice of plain VMs, asked for as a queued resource, with gcloud.
#
#   tpu_vm.sh [--print] create             ask for the slice; nothing if it was asked for already
#   tpu_vm.sh [--print] wait               until it is there
#   tpu_vm.sh [--print] setup              on every VM: fetch IMAGE, mount BUCKET at MOUNT
#   tpu_vm.sh [--print] stage gs://A/B     on every VM: copy it to LOCAL/B, or what has changed of it
#   tpu_vm.sh [--print] run -- FLAGS       start experiments.train with FLAGS on every VM
#   tpu_vm.sh [--print] status             state of the slice, and of training on every VM
#   tpu_vm.sh [--print] logs               follow the log of the first VM
#   tpu_vm.sh [--print] stop               SIGTERM to training on every VM; the same `run` goes on
#   tpu_vm.sh [--print] delete             give the slice back
#   tpu_vm.sh keep -- FLAGS                all of it, again and again, until training has finished
#
# --print shows the commands and runs none. All of them may be run again.
#
# Variables:
#   PROJECT, ZONE      of Google Cloud
#   NAME               of the slice (jepa)
#   TPU_TYPE           v5litepod-256 (v5e 16x16), v5p-256 (128 chips, 256 cores), v6e-256
#   RUNTIME            software of the VMs; by default the one for TPU_TYPE
#   CAPACITY           e.g. --spot or --reserved; empty for on demand
#   IMAGE              as xpk.sh builds and pushes it
#   BUCKET, MOUNT      a bucket, and where it is mounted (/mnt/bucket); none if BUCKET is empty
#   LOCAL              a directory of each VM that training sees under the same name (/mnt/local)
#   GRACE              seconds between SIGTERM and SIGKILL, for the last checkpoint (300)
#   RESTARTS           how often a VM starts training again when it died or was stopped (20)
#   PATIENCE           seconds between two looks of `wait` and `keep` (60)
#   XLA_FLAGS, LIBTPU_INIT_ARGS   handed on to training where they are set

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

NAME=${NAME:-jepa}
MOUNT=${MOUNT:-/mnt/bucket}
LOCAL=${LOCAL:-/mnt/local}

place() { echo "--project=$PROJECT --zone=$ZONE"; }

queued() {
  local verb=$1
  shift
  # shellcheck disable=SC2046 # two words
  run gcloud compute tpus queued-resources "$verb" "$NAME" $(place) "$@"
}

on() {
  local worker=$1
  # shellcheck disable=SC2046
  run gcloud compute tpus tpu-vm ssh "$NAME" $(place) "--worker=$worker" "--command=$2"
}

# The slice's state, or nothing where there is no such slice. It fails where gcloud gives no answer,
# which does not mean that there is none.
state() {
  local errors found code=0
  errors=$(mktemp)
  # shellcheck disable=SC2046
  found=$(gcloud compute tpus queued-resources describe "$NAME" $(place) \
    '--format=value(state.state)' 2>"$errors") || code=$?
  if [ "$code" = 0 ]; then
    echo "${found:-STATE_UNSPECIFIED}"
  elif grep -q NOT_FOUND "$errors"; then
    code=0
  else
    cat "$errors" >&2
  fi
  rm -f "$errors"
  return "$code"
}

# The same, asked until gcloud answers.
look() {
  until state; do
    echo "gcloud does not say how $NAME is; asking again in ${PATIENCE:-60} seconds" >&2
    sleep "${PATIENCE:-60}"
  done
}

runtime() {
  case $TPU_TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) die "TPU_TYPE=$TPU_TYPE: name its RUNTIME" ;;
  esac
}

create() {
  need TPU_TYPE
  local found=""
  [ -n "$PRINT" ] || found=$(state) || die "gcloud does not say whether $NAME is there; see above"
  if [ -n "$found" ]; then
    echo "$NAME is there: $found"
    return
  fi
  ask
}

ask() {
  local software
  software=${RUNTIME:-$(runtime)}
  # shellcheck disable=SC2086 # CAPACITY may be empty, or several options
  queued create "--node-id=$NAME" "--accelerator-type=$TPU_TYPE" \
    "--runtime-version=$software" ${CAPACITY:-}
}

wait_for_it() {
  local found
  if [ -n "$PRINT" ]; then
    queued describe '--format=value(state.state)'
    return
  fi
  while found=$(look) && [ "$found" != ACTIVE ]; do
    case $found in
      FAILED | SUSPENDED) die "$NAME is $found; delete it and create it again" ;;
      '') die "$NAME does not exist; create it" ;;
    esac
    echo "$NAME is $found"
    sleep "${PATIENCE:-60}"
  done
}

setup() {
  need IMAGE
  local host=${IMAGE%%/*}
  on all "sudo gcloud auth configure-docker $host --quiet && sudo docker pull $IMAGE"
  [ -n "${BUCKET:-}" ] || return 0
  on all "command -v gcsfuse || { echo 'error: install gcsfuse in the VMs first' >&2; exit 2; }; \
sudo mkdir -p $MOUNT && { mountpoint -q $MOUNT || \
sudo gcsfuse --implicit-dirs -o allow_other $BUCKET $MOUNT; }"
}

stage() {
  local target
  case ${1:-} in
    gs://?*/?*) ;;
    *) die "stage gs://BUCKET/DIRECTORY: ${1:-nothing} is no such address" ;;
  esac
  target=$LOCAL/$(basename "$1")
  on all "sudo mkdir -p $target && sudo gcloud storage rsync --recursive $1 $target"
}

# Docker starts a container again whose process ends with anything but 0, so training that was
# stopped (42) or died goes on; one that has finished stays ended.
start() {
  need IMAGE
  local command variable environment="" volume=" --volume=$LOCAL:$LOCAL"
  command=$(train_command "$@")
  for variable in XLA_FLAGS LIBTPU_INIT_ARGS; do
    if [ -n "${!variable:-}" ]; then
      environment+=" --env=$(printf %q "$variable=${!variable}")"
    fi
  done
  if [ -n "${BUCKET:-}" ]; then volume+=" --volume=$MOUNT:$MOUNT"; fi
  on all "sudo docker inspect --format '{{.State.Running}}' jepa 2>/dev/null | grep -q true || \
{ sudo docker rm jepa >/dev/null 2>&1; sudo docker run --detach --name=jepa --privileged \
--network=host --shm-size=16g --restart=on-failure:${RESTARTS:-20} \
--stop-timeout=${GRACE:-300}$environment$volume $IMAGE $command; }"
}

training() {
  echo "sudo docker inspect --format '{{.State.Status}} {{.State.ExitCode}}' jepa 2>/dev/null || echo none"
}

# What a slice needs to train to the end, whatever happens to it. A preempted one is SUSPENDED and
# cannot come back: it is deleted and asked for again.
keep() {
  [ -z "$PRINT" ] || die "keep has no --print: what it runs depends on what it finds"
  train_command "$@" >/dev/null
  need TPU_TYPE IMAGE
  local found
  while true; do
    found=$(look)
    case $found in
      '') ask ;;
      FAILED | SUSPENDED) queued delete --force --quiet || echo "$NAME is not deleted yet" >&2 ;;
      ACTIVE)
        case $(on 0 "$(training)" | tail -n 1) in
          'exited 0')
            echo "training has finished"
            return
            ;;
          'exited 2') die "training refused its config; see: $0 logs" ;;
          running* | restarting*) ;;
          none | created* | exited* | dead*)
            { setup && start "$@"; } || echo "$NAME: training was not started yet" >&2
            ;;
          *) echo "$NAME: its first VM does not answer" >&2 ;;
        esac
        ;;
    esac
    sleep "${PATIENCE:-60}"
  done
}

main() {
  if [ "${1:-}" = --print ]; then
    PRINT=1
    shift
  fi
  local what=${1:-}
  shift || true
  if [ "$what" = --help ] || [ "$what" = -h ]; then
    usage
    return
  fi
  need PROJECT ZONE
  case $what in
    create | setup | stage | keep) "$what" "$@" ;;
    wait) wait_for_it ;;
    run) start "$@" ;;
    status)
      queued describe '--format=value(state.state)'
      on all "$(training)"
      ;;
    logs) on 0 "sudo docker logs --tail=100 --follow jepa" ;;
    stop) on all "sudo docker stop --time=${GRACE:-300} jepa" ;;
    delete) queued delete --force --quiet ;;
    *) die "${what:-no command}: give create, wait, setup, stage, run, status, logs, stop, delete or keep" ;;
  esac
}

main "$@"
