"""A checkpoint that one process of several cannot read, and an error that only one of them sees."""

import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import tensorstore

sys.path.insert(0, str(Path(__file__).parent))
from launch import Run, run  # noqa: E402

HERE = socket.gethostname()
TOY = ("-m", "tests.distributed.toy_process")
BOUND = 90  # seconds; a run that hangs would wait for 600 at its first barrier


def start(folder, workdir, *more):
    return Run(folder, [*TOY, f"--workdir={workdir}", "--fsdp=2", *more], 2)


def last_line(log):
    return [line for line in log.splitlines() if line.startswith("error: ")][-1]


def final(started):
    """What the processes hold at the end, without their numbers."""
    lines = "\n".join(started.log(i) for i in range(2)).splitlines()
    return [line.rsplit(maxsplit=1)[0] for line in lines if line.startswith("final ")]


def chunk_of_process_1(checkpoint):
    """Returns the file and the place of an array's chunk that only process 1 reads, and its size.

    Over fsdp the second half of the encoder's kernel lies on the devices of process 1.
    """
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{checkpoint / 'state'}/"}
    ).result()
    keys = [key for key in store.list().result() if key.endswith(b"params.encoder.kernel/1.0")]
    chunk = store.read(min(keys, key=len)).result().value
    for path in sorted((checkpoint / "state").rglob("d/*")):
        place = path.read_bytes().find(chunk)
        if place >= 0:
            return path, place, len(chunk)
    raise AssertionError(f"no file has the chunk {keys}")


def flip(path, place, bit=0x01):
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(bytes(content))


@pytest.mark.slow
def test_all_take_the_checkpoint_before_one_that_a_single_process_cannot_read(tmp_path):
    whole = tmp_path / "whole"
    undisturbed = run(
        tmp_path, [*TOY, f"--workdir={whole}", "--fsdp=2", "--hidden=512", "--steps=8"], 2
    )
    wanted = final(undisturbed)
    assert len(wanted) == 8

    # The first byte says how the chunk is packed: process 1 cannot unpack it.
    # In the middle there are numbers: they are others now, or it cannot be unpacked either.
    for where, who in ((0.0, "(process 1 "), (0.5, "(process ")):
        workdir = tmp_path / f"run{where}"
        shutil.copytree(whole, workdir)
        path, place, size = chunk_of_process_1(workdir / "checkpoints" / "8")
        flip(path, place + int(where * size))
        begin = time.monotonic()
        again = start(tmp_path, workdir, "--hidden=512", "--steps=8")
        assert again.wait(BOUND) == [0, 0], again.logs()
        assert time.monotonic() - begin < BOUND
        for i in range(2):
            said = again.log(i)
            assert f"checkpoint 8 in {workdir / 'checkpoints'} is damaged {who}" in said, said
            assert "going on from checkpoint 4 instead" in said
        assert f"is damaged (process 1 ({HERE}) of 2: " in again.log() or where, again.log()
        assert "resuming at step 4" in again.log()
        assert (workdir / "damaged" / "8").is_dir() and (workdir / "checkpoints" / "8").is_dir()
        assert final(again) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("one", [0, 1])
def test_a_mistake_that_one_loader_tells_of_ends_all_with_its_sentence(tmp_path, one):
    started = start(tmp_path, tmp_path / "run", f"--mistake={one}", "--steps=4000")
    try:
        started.until("step 4/")
        assert started.wait(30) == [2, 2], started.logs()
    finally:
        started.kill()
    why = "too many videos cannot be read. The last checkpoint is step 4."
    assert last_line(started.log(one)) == f"error: {why}"
    assert last_line(started.log(1 - one)) == f"error: process {one} ({HERE}) of 2 failed: {why}"
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
