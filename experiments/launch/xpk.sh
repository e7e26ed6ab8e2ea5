#!/usr/bin/env bash
# Runs training on TPU slices of GKE with xpk (tested against the options of xpk 1.16.0).
#
#   xpk.sh [--print] image                   build the image and push it as IMAGE
#   xpk.sh [--print] cluster                 make CLUSTER with SLICES slices, or bring it to that
#   xpk.sh [--print] bucket NAME PATH        mount a bucket at PATH in every workload
#   xpk.sh [--print] run NAME -- FLAGS       start experiments.train with FLAGS on SLICES slices
#   xpk.sh [--print] status                  the workloads and how they fare
#   xpk.sh [--print] stop NAME               end a workload; the same `run` later goes on
#   xpk.sh [--print] delete                  delete CLUSTER
#
# --print shows the commands and runs none. All of them may be run again; a second `run` of a name that
# is taken is refused by xpk.
#
# Variables:
#   PROJECT, ZONE   of Google Cloud
#   CLUSTER         name of the GKE cluster
#   IMAGE           e.g. us-docker.pkg.dev/PROJECT/REPOSITORY/jepa:1
#   TPU_TYPE        v5litepod-256 (v5e 16x16), v5p-256 (4x4x8: 128 chips, 256 cores), v6e-256
#   SLICES          1
#   CAPACITY        --on-demand, --spot, --flex or --reservation=NAME (--on-demand)
#   RESTARTS        how often a workload that was stopped or died is started again (100)
#   GRACE           seconds between SIGTERM and SIGKILL, for the last checkpoint (300)
#   BUCKET_GB       size that Kubernetes is told a mounted bucket has (10000)
#   XLA_FLAGS, LIBTPU_INIT_ARGS   handed on to the workload where they are set

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

SLICES=${SLICES:-1}
CAPACITY=${CAPACITY:---on-demand}

gke() {
  need PROJECT ZONE CLUSTER
  run xpk "$@" "--project=$PROJECT" "--zone=$ZONE" "--cluster=$CLUSTER"
}

image() {
  need IMAGE
  run docker build --build-arg=ACCELERATOR=tpu "--file=$here/Dockerfile" "--tag=$IMAGE" "$here/../.."
  run docker push "$IMAGE"
}

cluster() {
  need TPU_TYPE
  gke cluster create "--tpu-type=$TPU_TYPE" "--num-slices=$SLICES" "$CAPACITY" \
    --enable-gcsfuse-csi-driver
}

# The bucket must have a hierarchical namespace: only there is a directory renamed in one step,
# which is how a checkpoint becomes valid.
bucket() {
  [ $# = 2 ] || die "bucket NAME PATH: give both"
  gke storage attach "$1" --type=gcsfuse "--bucket=$1" "--mount-point=$2" "--size=${BUCKET_GB:-10000}" \
    --auto-mount=true --readonly=false --mount-options=implicit-dirs
}

# `exec`, so that SIGTERM reaches Python and not the shell that xpk puts around the command. Code 42
# (stopped) and those above 127 (killed) restart the workload by xpk's own choice; 1 is a process
# that died or lost another one. A mistake in the config, code 2, ends the workload.
start() {
  local name=${1:-} command environment=() variable
  case $name in '' | --) die "run NAME -- FLAGS: the name is missing" ;; esac
  shift
  need TPU_TYPE IMAGE
  command=$(train_command "$@")
  for variable in XLA_FLAGS LIBTPU_INIT_ARGS; do
    if [ -n "${!variable:-}" ]; then environment+=("--env=$variable=${!variable}"); fi
  done
  gke workload create "--workload=$name" "--tpu-type=$TPU_TYPE" "--num-slices=$SLICES" \
    "--docker-image=$IMAGE" "--max-restarts=${RESTARTS:-100}" --restart-on-exit-codes=1 \
    "--termination-grace-period-seconds=${GRACE:-300}" ${environment[@]+"${environment[@]}"} \
    "--command=exec $command"
}

main() {
  if [ "${1:-}" = --print ]; then
    PRINT=1
    shift
  fi
  local what=${1:-}
  shift || true
  case $what in
    image | cluster | bucket) "$what" "$@" ;;
    run) start "$@" ;;
    status) gke workload list ;;
    stop)
      [ $# = 1 ] || die "stop NAME: the name is missing"
      gke workload delete "--workload=$1" --force
      ;;
    delete) gke cluster delete ;;
    -h | --help) usage ;;
    *) die "${what:-no command}: give image, cluster, bucket, run, status, stop or delete (--help)" ;;
  esac
}

main "$@"
