"""What the files of experiments/launch would run, and how they react to what comes back.

No cloud and no cluster: commands are printed, or meet programs of the same name that answer as
told.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments import train
from jepa.parallel import chips
from jepa.training.loop import Result

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
VARIABLES = {
    "PROJECT": "some-project",
    "ZONE": "us-central1-a",
    "CLUSTER": "pods",
    "IMAGE": "us-docker.pkg.dev/some-project/images/jepa:1",
    "TPU_TYPE": "v5p-256",
}
FLAGS = ["--config=a.py", "--workdir=/data/run 1", '--config.train.profile_steps=(10,"15")']
TRAIN = ["python", "-m", "experiments.train", "--distributed", "--stopped_exit_code=42", *FLAGS]
PLACE = ["--project=some-project", "--zone=us-central1-a"]


def call(script, *arguments, code=0, path=None, **variables):
    environment = {"PATH": os.environ["PATH"], **VARIABLES, **variables}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", str(LAUNCH / script), *arguments], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def printed(script, *arguments, **variables):
    lines = call(script, "--print", *arguments, **variables).stdout.splitlines()
    return [shlex.split(line) for line in lines]


def fake(folder, name, text):
    """A program of that name in `folder`; what it is called with goes to the file `calls`."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{text}\n')
    path.chmod(0o755)


def calls(folder):
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_name_no_place_of_ours(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert not re.search(r"/(home|work|root|opt)/|token|password|secret", text, re.IGNORECASE)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    subprocess.run(["shellcheck", "-x", "-P", str(LAUNCH), *map(str, SCRIPTS)], check=True)


@pytest.mark.parametrize("script", ["xpk.sh", "tpu_vm.sh", "slurm.sbatch"])
def test_help_and_mistakes(script):
    said = call(script, "--help").stdout
    assert "FLAGS" in said and "--print" in said and "Variables:" in said
    assert "set -" not in said and "#SBATCH --" not in said
    for arguments in ([], ["nonsense"], ["run", "name"], ["run", "name", "--"], ["--"]):
        done = call(script, *arguments, code=2)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_missing_variable_is_named():
    assert "TPU_TYPE is not set" in call("xpk.sh", "--print", "cluster", code=2, TPU_TYPE="").stderr
    assert "PROJECT is not set" in call("tpu_vm.sh", "wait", code=2, PROJECT="").stderr
    said = call("tpu_vm.sh", "--print", "create", code=2, TPU_TYPE="v9-8").stderr
    assert "TPU_TYPE=v9-8: name its RUNTIME" in said


# Options as in `xpk ... --help` of 1.16.0.
def test_xpk_commands():
    where = [*PLACE, "--cluster=pods"]
    assert printed("xpk.sh", "cluster", CAPACITY="--spot", SLICES="2") == [
        ["xpk", "cluster", "create", "--tpu-type=v5p-256", "--num-slices=2", "--spot",
         "--enable-gcsfuse-csi-driver", *where]
    ]  # fmt: skip
    assert printed("xpk.sh", "bucket", "my-data", "/data") == [
        ["xpk", "storage", "attach", "my-data", "--type=gcsfuse", "--bucket=my-data",
         "--mount-point=/data", "--size=10000", "--auto-mount=true", "--readonly=false",
         "--mount-options=implicit-dirs", *where]
    ]  # fmt: skip
    (run,) = printed("xpk.sh", "run", "r1", "--", *FLAGS, LIBTPU_INIT_ARGS="--a=1 --b=2")
    command = run.pop(-len(where) - 1)
    assert run == [
        "xpk", "workload", "create", "--workload=r1", "--tpu-type=v5p-256", "--num-slices=1",
        f"--docker-image={VARIABLES['IMAGE']}", "--max-restarts=100", "--restart-on-exit-codes=1",
        "--termination-grace-period-seconds=300", "--env=LIBTPU_INIT_ARGS=--a=1 --b=2", *where,
    ]  # fmt: skip
    assert shlex.split(command.removeprefix("--command=")) == ["exec", *TRAIN]
    assert printed("xpk.sh", "status") == [["xpk", "workload", "list", *where]]
    assert printed("xpk.sh", "stop", "r1") == [
        ["xpk", "workload", "delete", "--workload=r1", "--force", *where]
    ]
    assert printed("xpk.sh", "delete") == [["xpk", "cluster", "delete", *where]]
    build, push = printed("xpk.sh", "image")
    assert build[:3] == ["docker", "build", "--build-arg=ACCELERATOR=tpu"]
    assert Path(build[-1]).resolve() == ROOT
    assert push == ["docker", "push", VARIABLES["IMAGE"]]


def test_sigterm_reaches_training_through_the_shell_of_xpk(tmp_path):
    (run,) = printed("xpk.sh", "run", "r1", "--", *FLAGS)
    command = next(a for a in run if a.startswith("--command=")).removeprefix("--command=")
    fake(
        tmp_path, "python", 'trap "exit 42" TERM\ntouch "$0.ready"\nwhile true; do sleep 0.1; done'
    )
    # What xpk puts around a command.
    wrapper = (
        "_sigterm() (kill -SIGTERM $! 2>/dev/null;); trap _sigterm SIGTERM; "
        f"({command}) & PID=$!; while kill -0 $PID 2>/dev/null; do sleep 0.2; done; wait $PID"
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", "-c", wrapper], env=environment)
    deadline = time.monotonic() + 20
    while not (tmp_path / "python.ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 42
    assert calls(tmp_path) == ["python " + " ".join(TRAIN[1:])]


def test_gcloud_commands():
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "jepa", *PLACE]
    queue = ["gcloud", "compute", "tpus", "queued-resources"]
    assert printed("tpu_vm.sh", "create", CAPACITY="--spot") == [
        [*queue, "create", "jepa", *PLACE, "--node-id=jepa", "--accelerator-type=v5p-256",
         "--runtime-version=v2-alpha-tpuv5", "--spot"]
    ]  # fmt: skip
    assert printed("tpu_vm.sh", "delete") == [
        [*queue, "delete", "jepa", *PLACE, "--force", "--quiet"]
    ]
    pull, mount = printed("tpu_vm.sh", "setup", BUCKET="data")
    assert pull[:-1] == mount[:-1] == [*ssh, "--worker=all"]
    assert "docker pull us-docker.pkg.dev/some-project/images/jepa:1" in pull[-1]
    assert "gcsfuse --implicit-dirs -o allow_other data /mnt/bucket" in mount[-1]
    (run,) = printed("tpu_vm.sh", "run", "--", *FLAGS, BUCKET="data", XLA_FLAGS="--a=1 --b=2")
    assert run[:-1] == [*ssh, "--worker=all"]
    for part in (pull[-1], mount[-1], run[-1]):
        subprocess.run(["bash", "-n", "-c", part.removeprefix("--command=")], check=True)
    words = shlex.split(run[-1].split("sudo docker run ")[1].removesuffix("; }"))
    assert words[-len(TRAIN) - 1 :] == [VARIABLES["IMAGE"], *TRAIN]
    assert "--restart=on-failure:20" in words and "--volume=/mnt/bucket:/mnt/bucket" in words
    assert "--volume=/mnt/local:/mnt/local" in words
    (copy,) = printed("tpu_vm.sh", "stage", "gs://data/sets/mine")
    assert copy[-1].endswith("rsync --recursive gs://data/sets/mine /mnt/local/mine")
    assert "is no such address" in call("tpu_vm.sh", "stage", "/data", code=2).stderr
    assert "--network=host" in words and "--env=XLA_FLAGS=--a=1 --b=2" in words


GCLOUD = r"""
folder=$(dirname "$0")
say() { head -n 1 "$folder/$1"; sed -i 1d "$folder/$1"; }
case "$*" in
  *"queued-resources describe"*)
    found=$(say states)
    case $found in
      absent) echo "ERROR: (gcloud.compute) NOT_FOUND: Resource 'jepa' was not found" >&2; exit 1 ;;
      unanswered) echo "ERROR: (gcloud.compute) UNAVAILABLE: try again" >&2; exit 1 ;;
      *) echo "$found" ;;
    esac
    ;;
  *"docker inspect --format '{{.State.Status}}"*) say training ;;
esac
"""


def test_keep_asks_again_for_a_slice_that_was_taken_away_and_ends_with_training(tmp_path):
    fake(tmp_path, "gcloud", GCLOUD)
    # Asked for; queued; there; taken away; the same once more.
    states = ["absent", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "absent"]
    (tmp_path / "states").write_text("\n".join([*states, "ACTIVE", "ACTIVE", "ACTIVE"]) + "\n")
    (tmp_path / "training").write_text("none\nrunning 0\nnone\nrestarting 42\nexited 0\n")
    done = call("tpu_vm.sh", "keep", "--", *FLAGS, path=tmp_path, PATIENCE="0")
    assert done.stdout.splitlines()[-1] == "training has finished"
    words = [re.sub(r"^gcloud compute tpus (\S+) (\S+).*", r"\1 \2", c) for c in calls(tmp_path)]
    did = [w for w in words if "describe" not in w]
    create, delete, ssh = "queued-resources create", "queued-resources delete", "tpu-vm ssh"
    once = [create, ssh, ssh, ssh, ssh]  # how is training? fetch the image; start; how is it?
    assert did == [*once, delete, *once, ssh]
    assert sum("docker run" in c for c in calls(tmp_path)) == 2


def test_keep_asks_again_where_gcloud_gives_no_answer(tmp_path):
    fake(tmp_path, "gcloud", GCLOUD)
    (tmp_path / "states").write_text("ACTIVE\nunanswered\nunanswered\n\nACTIVE\n")
    (tmp_path / "training").write_text("running 0\nexited 0\n")
    done = call("tpu_vm.sh", "keep", "--", *FLAGS, path=tmp_path, PATIENCE="0")
    assert done.stdout.splitlines()[-1] == "training has finished"
    assert done.stderr.count("UNAVAILABLE") == done.stderr.count("asking again") == 2
    assert sum("describe" in c for c in calls(tmp_path)) == 5
    assert not any("create" in c or "delete" in c for c in calls(tmp_path))


def test_without_an_answer_create_creates_nothing_and_wait_waits(tmp_path):
    fake(tmp_path, "gcloud", GCLOUD)
    states = ["unanswered", "unanswered", "ACTIVE", "absent", "absent"]
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    said = call("tpu_vm.sh", "create", path=tmp_path, code=2).stderr
    assert "UNAVAILABLE" in said and "does not say whether jepa is there" in said
    assert "asking again" in call("tpu_vm.sh", "wait", path=tmp_path, PATIENCE="0").stderr
    assert "does not exist; create it" in call("tpu_vm.sh", "wait", path=tmp_path, code=2).stderr
    assert not any("create" in c for c in calls(tmp_path))
    call("tpu_vm.sh", "create", path=tmp_path)
    assert "queued-resources create" in calls(tmp_path)[-1]


def test_keep_ends_when_training_refuses_its_config(tmp_path):
    fake(tmp_path, "gcloud", GCLOUD)
    (tmp_path / "states").write_text("ACTIVE\n")
    (tmp_path / "training").write_text("exited 2\n")
    done = call("tpu_vm.sh", "keep", "--", *FLAGS, path=tmp_path, code=2, PATIENCE="0")
    assert "refused its config" in done.stderr


def test_create_asks_once_and_wait_waits(tmp_path):
    fake(tmp_path, "gcloud", GCLOUD)
    (tmp_path / "states").write_text("ACTIVE\nWAITING_FOR_RESOURCES\nACTIVE\nSUSPENDED\n")
    assert call("tpu_vm.sh", "create", path=tmp_path).stdout == "jepa is there: ACTIVE\n"
    said = call("tpu_vm.sh", "wait", path=tmp_path, PATIENCE="0").stdout
    assert said == "jepa is WAITING_FOR_RESOURCES\n"
    assert "is SUSPENDED; delete it" in call("tpu_vm.sh", "wait", path=tmp_path, code=2).stderr
    assert all("describe" in line for line in calls(tmp_path))


def test_slurm_command_and_options():
    (line,) = printed("slurm.sbatch", "--", *FLAGS)
    assert line == [
        "srun", "--cpus-per-task=12", "--gpu-bind=none", "--kill-on-bad-exit=0", *TRAIN
    ]  # fmt: skip
    assert "#SBATCH --cpus-per-task=12\n" in (LAUNCH / "slurm.sbatch").read_text()
    options = re.findall(r"^#SBATCH --([a-z-]+)", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    assert {"signal", "requeue", "gpus-per-node", "ntasks-per-node", "nodes"} <= set(options)
    # JAX gives a process the GPU of its number on the node, so all must be visible to it.
    assert "gpus-per-task" not in options


@pytest.mark.parametrize(
    ("ended", "restarts", "again", "code"),
    [(0, 0, False, 0), (2, 0, False, 2), (42, 99, True, 42), (137, 9, True, 137),
     (137, 10, False, 137)],
)  # fmt: skip
def test_slurm_requeues_what_can_go_on(tmp_path, ended, restarts, again, code):
    fake(tmp_path, "srun", f'echo "$JAX_LOCAL_DEVICE_IDS"; exit {ended}')
    fake(tmp_path, "scontrol", "exit 0")
    done = call(
        "slurm.sbatch", "--", *FLAGS, path=tmp_path, code=code, SLURM_JOB_ID="77",
        SLURM_RESTART_COUNT=str(restarts), SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4",
    )  # fmt: skip
    assert ("scontrol requeue 77" in calls(tmp_path)) == again
    assert done.stdout.splitlines()[0] == "0,1,2,3"


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({}, str(chips.GPU_SHARE)),
        ({"XLA_CLIENT_MEM_FRACTION": "0.8"}, "0.8"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.7"}, "0.7"),
    ],
)
def test_slurm_hands_on_what_srun_does_not_take_over_and_the_share_of_memory(
    tmp_path, given, share
):
    # JAX refuses both names of the share together.
    old = "${XLA_PYTHON_CLIENT_MEM_FRACTION-gone}"
    fake(tmp_path, "srun", f'echo "$XLA_CLIENT_MEM_FRACTION {old}"')
    done = call(
        "slurm.sbatch", "--", *FLAGS, path=tmp_path, SLURM_JOB_ID="77", SLURM_CPUS_PER_TASK="24",
        **given,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == f"{share} gone"
    (line,) = calls(tmp_path)
    assert line.startswith("srun --cpus-per-task=24 ")


def test_dockerfile():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "CMD"}
    assert {line.split()[0] for line in lines} == known
    assert f"ENV XLA_CLIENT_MEM_FRACTION={chips.GPU_SHARE}" in lines
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().split()
    for line in lines:
        what, _, rest = line.partition(" ")
        if what == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
        if what == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists() and f"!{source}" in ignored
    # The image has what setup.py reads, and the JAX that is tested.
    setup = (ROOT / "setup.py").read_text()
    for extra in ("jax[tpu]", "jax[cuda13]"):
        assert f"{extra}==$jax" in text and f"{extra}>=" in setup
    done = subprocess.run(
        ["sed", "-n", "s/^jax==//p", "requirements.txt"], cwd=ROOT, capture_output=True, text=True
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
    beam = re.search(r"beam_python(\S+)_sdk:(\S+) AS beam", text)
    assert beam and f"apache-beam[gcp]=={beam[2]}" in text and f"python:{beam[1]}-" in text
    assert f'"apache-beam>={beam[2].rpartition(".")[0]},' in setup


@pytest.mark.parametrize(("finished", "code"), [(True, 0), (False, 42)])
def test_a_run_that_was_stopped_ends_with_the_code_that_was_asked_for(monkeypatch, finished, code):
    result = Result(state=None, step=3, finished=finished, evaluation={}, goodput=None)
    monkeypatch.setattr(train, "from_flags", lambda **_: (None, "nowhere"))
    monkeypatch.setattr(train, "main", lambda *_, **__: result)
    train.flags.FLAGS([sys.argv[0]])
    with flagsaver.flagsaver(stopped_exit_code=42):
        assert train._from_flags() == code
