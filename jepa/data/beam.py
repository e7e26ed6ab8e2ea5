"""Writes a dataset with Apache Beam: the shards of `build.write_dataset`, on many machines.

The only module that imports Beam. What goes into a shard is decided by the plan (`jepa.data.plan`)
before anything runs; each shard's part of it lies in the dataset's directory until the dataset is
finished. A worker takes the name of a shard, reads its plan, verifies its videos and writes it
with `writer.write_shard`. So a shard that is written twice, as Beam may do, has the same bytes; one
that is there is left alone; and a directory may be begun with Beam and finished without, or the
other way round.

Directory, manifests, tars and videos may be addresses of a bucket (`gs://`, `s3://`, `hdfs://`:
what Beam's file systems know) where all machines reach them. Folders must be paths.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from jepa.data import plan as plans
from jepa.data import schema
from jepa.data.build import refuse_many
from jepa.data.entries import make_record
from jepa.data.jobs import Progress
from jepa.data.shards import PARTS, Reject, part_name, read_summary, shard_name, summary_text
from jepa.data.storage import Files, is_address
from jepa.data.webdataset import read_tar
from jepa.data.writer import DatasetWriter, write_shard
from jepa.errors import UserError

try:
    import apache_beam as beam
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.metrics import Metrics, MetricsFilter
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise UserError(
        f"--runner needs Apache Beam ({error}); install it into an environment of its own: "
        'pip install -e ".[beam]"'
    ) from error

NAMESPACE = "jepa"
_POLL_SECONDS = 10.0
_THREADS = 32


class RemoteFiles(Files):
    """Files in a bucket, through Beam's file systems; see `storage.Files`.

    A file appears under its name by a rename of a whole one, which no reader sees half.
    """

    def __init__(self, directory: str):
        super().__init__(directory)
        self.url = directory.rstrip("/")
        try:
            FileSystems.get_filesystem(directory)
        except ValueError as error:
            raise UserError(
                f"{directory} is of a kind that this installation of Beam does not know; for gs:// "
                'pip install "apache-beam[gcp]"'
            ) from error

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> str:
        """See `Files.read`."""
        self.size(name)  # what opening an absent object raises differs between file systems
        with _reaching(f"{self.url}/{name}"):
            return read_bytes(f"{self.url}/{name}").decode()

    def write(self, name: str, content: str | bytes) -> None:
        """See `Files.write`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            self.upload(path, name)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to `name`."""
        target = f"{self.url}/{name}"
        partial = f"{target}.{uuid.uuid4().hex[:12]}.tmp"
        with _reaching(target):
            if FileSystems.get_filesystem(target).has_dirs():
                with contextlib.suppress(OSError):  # it exists
                    FileSystems.mkdirs(os.path.dirname(target))
            with path.open("rb") as source, _open(partial, write=True) as sink:
                shutil.copyfileobj(source, sink, 1 << 22)
            try:
                FileSystems.rename([partial], [target])
            except OSError:  # some file systems do not rename onto an existing file
                self.remove(name)
                FileSystems.rename([partial], [target])

    def size(self, name: str) -> int:
        """See `Files.size`."""
        with _reaching(f"{self.url}/{name}"):
            found = FileSystems.match([f"{self.url}/{name}"])[0].metadata_list
        if not found:
            raise FileNotFoundError(f"{self.url}/{name}")
        return found[0].size_in_bytes

    def count(self, folder: str, suffix: str) -> int:
        """See `Files.count`."""
        return len(FileSystems.match([f"{self.url}/{folder}/*{suffix}"])[0].metadata_list)

    def remove(self, name: str) -> None:
        """See `Files.remove`."""
        with _reaching(f"{self.url}/{name}"):
            if FileSystems.exists(f"{self.url}/{name}"):
                FileSystems.delete([f"{self.url}/{name}"])

    def tidy(self, folder: str) -> None:
        """See `Files.tidy`."""
        left = FileSystems.match([f"{self.url}/*.tmp"])[0].metadata_list
        # With a slash it is all that is below, in few requests.
        with contextlib.suppress(OSError):
            FileSystems.delete([f"{self.url}/{folder}/", *(found.path for found in left)])


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn whatever a file system raises, each its own, into a UserError."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"{url} cannot be read or written: {reason.splitlines()[0]}") from error


def open_files(directory: str) -> Files:
    """The files of a directory or of a place in a bucket."""
    return RemoteFiles(directory) if is_address(directory) else Files(directory)


def read_bytes(url: str) -> bytes:
    """Contents of a file."""
    with _open(url) as source:
        return source.read()


def _open(url: str, write: bool = False) -> Any:
    # As they are: names like .gz would otherwise be unpacked on the way.
    open_ = FileSystems.create if write else FileSystems.open
    return open_(url, compression_type=CompressionTypes.UNCOMPRESSED)


def write_dataset(
    directory: str,
    sources: Sequence[plans.Source],
    options: plans.Options,
    *,
    name: str = "",
    runner: str,
    flags: Sequence[str] = (),
) -> dict[str, int]:
    """Write what is missing of a dataset on a Beam runner; see `build.write_dataset`.

    Args:
        directory: Where the dataset goes: a path that every worker sees, or an address.
        sources: One for each split.
        options: How the clips are cut into shards and stored.
        name: The dataset's name; "" takes that of the directory.
        runner: Beam's name of the runner, e.g. "DirectRunner" or "DataflowRunner".
        flags: The runner's options, e.g. "--project=...".

    Returns:
        The counters of the pipeline: shards, records, rejects, bytes. Empty where nothing ran.

    Raises:
        UserError: as `build.write_dataset`; or the pipeline failed, whose finished shards stay.
    """
    plans.check(sources, options)
    directory = directory.rstrip("/") if is_address(directory) else os.path.abspath(directory)
    pipeline_options = _pipeline_options(runner, flags)
    files = open_files(directory)
    plan, bases = _plan(sources, options)
    title = name or Path(directory).resolve().name
    writer = DatasetWriter(directory, name=title, settings=plan.settings, files=files)
    counters: dict[str, int] = {}
    if not writer.finished:
        _store_plans(writer, plan, bases)
        counters = _run(writer, directory, plan.shards, pipeline_options)
        parts = [p for split, n in plan.shards.items() for p in writer.summaries(split, n)]
        rejects = [reject for part in parts for reject in part.rejects]
        seen = plan.total or sum(part.count for part in parts) + len(rejects)
        refuse_many(writer, rejects, seen, options.max_rejects)
    writer.finish(plan.shards, caption_queries=options.caption_queries)
    return counters


def _plan(
    sources: Sequence[plans.Source], options: plans.Options
) -> tuple[plans.Plan, dict[str, str]]:
    """The plan, and for each split the address that its videos' names are relative to, if any."""
    parts: list[plans.Part] = []
    bases: dict[str, str] = {}
    for source in sources:
        location = source.location
        if not is_address(location):
            parts.append(plans.plan_source(source, options))
        elif source.kind == "folder":
            raise UserError(
                f"--folder {location} is an address; list its videos in a manifest (--manifest)"
            )
        elif source.kind == "webdataset":
            parts.append(plans.plan_tars(source.split, _match_tars(location), options))
        else:
            bases[source.split] = location.rpartition("/")[0]
            with tempfile.TemporaryDirectory() as folder:
                local = _download(location, folder)
                parts.append(plans.plan_manifest(source, str(local), options))
    return plans.join(parts, options), bases


def _match_tars(pattern: str) -> list[tuple[str, str, Any]]:
    with _reaching(pattern):
        found = FileSystems.match([pattern])[0].metadata_list
    tars = sorted((m for m in found if m.path.endswith(".tar")), key=lambda m: m.path)
    if not tars:
        raise UserError(f"--webdataset {pattern} names no .tar file; quote the pattern")
    paths = [PurePosixPath(tar.path.partition("://")[2]) for tar in tars]
    root = os.path.commonpath([path.parent for path in paths])
    return [
        (
            tar.path,
            path.relative_to(root).with_suffix("").as_posix(),
            [tar.size_in_bytes, tar.last_updated_in_seconds],
        )
        for tar, path in zip(tars, paths, strict=True)
    ]


def _download(url: str, folder: str) -> Path:
    path = Path(folder) / url.rpartition("/")[2]
    with _reaching(url), _open(url) as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 22)
    return path


def _plan_name(file: str) -> str:
    return f"{PARTS}/{file}.plan"


def _store_plans(writer: DatasetWriter, plan: plans.Plan, bases: Mapping[str, str]) -> None:
    """Put the plan of every missing shard where workers find it.

    In files and not in the pipeline, whose description some runners limit to a few megabytes.
    """
    missing = {split: set(writer.missing(split, total)) for split, total in plan.shards.items()}

    def store(job: plans.Job) -> None:
        file = shard_name(job.split, job.index, job.total)
        writer.files.write(_plan_name(file), plans.plan_text(job, bases.get(job.split, "")))

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(store, [job for job in plan.jobs if job.index in missing[job.split]]))


class _WriteShard(beam.DoFn):
    """(split, index, total) -> nothing; the shard is written when it is done."""

    def __init__(self, directory: str):
        self._directory = directory
        self._count = {
            name: Metrics.counter(NAMESPACE, name)
            for name in ("shards", "records", "rejects", "bytes")
        }

    def process(self, element: tuple[str, int, int]) -> None:
        split, index, total = element
        files = open_files(self._directory)
        file = shard_name(split, index, total)
        if read_summary(files, file) is not None:
            return  # by an earlier run, or by another attempt at this element
        job, base = plans.read_plan(files.read(_plan_name(file)))
        found = self._counted(_records(job, base))
        if isinstance(files, RemoteFiles):
            with tempfile.TemporaryDirectory() as folder:
                summary = write_shard(folder, split, index, total, found)
                files.upload(Path(folder) / file, file)
            files.write(part_name(file), summary_text(summary))
        else:
            write_shard(self._directory, split, index, total, found)
        self._count["shards"].inc()

    def _counted(self, found: Iterator[schema.Record | Reject]) -> Iterator[schema.Record | Reject]:
        for item in found:
            if isinstance(item, Reject):
                self._count["rejects"].inc()
            else:
                self._count["records"].inc()
                self._count["bytes"].inc(len(item.video))
            yield item


def _records(job: plans.Job, base: str) -> Iterator[schema.Record | Reject]:
    """As `plan.records`, for videos and tars in buckets too."""
    if job.tar and is_address(job.tar):
        with tempfile.TemporaryDirectory() as folder:
            yield from read_tar(_download(job.tar, folder), job.prefix, job.transcode_size)
        return
    if job.tar:
        yield from plans.records(job)
    for item in job.entries:
        if isinstance(item, Reject):
            yield item
            continue
        url = item.source if is_address(item.source) else f"{base}/{item.source}" if base else ""
        if not url:
            yield make_record(item, job.transcode_size)
            continue
        try:
            data = read_bytes(url)
        except Exception:
            # What a missing object raises differs between file systems. Anything else may pass:
            # Beam tries the shard again.
            if FileSystems.exists(url):
                raise
            yield Reject(item.name, f"{item.source}: {os.strerror(errno.ENOENT)}")
            continue
        yield make_record(item, job.transcode_size, data)


def _indices(element: tuple[str, int]) -> Iterator[tuple[str, int, int]]:
    split, total = element
    for index in range(total):
        yield split, index, total


def _run(
    writer: DatasetWriter, directory: str, shards: Mapping[str, int], options: PipelineOptions
) -> dict[str, int]:
    try:
        pipeline = beam.Pipeline(options=options)
        _ = (
            pipeline
            | "splits" >> beam.Create(list(shards.items()))
            | "shards" >> beam.FlatMap(_indices)
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.ParDo(_WriteShard(directory))
        )
        with _progress(writer, sum(shards.values())):
            result = pipeline.run()
            state = result.wait_until_finish() or result.state
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"the pipeline failed: {lines[-1].strip() if lines else type(error).__name__}; mend "
            "that and run the same command again, which goes on with the shards that are missing"
        ) from error
    if state != "DONE":
        raise UserError(
            f"the pipeline ended as {state}; see the runner's log, then run the same command again"
        )
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return {counter.key.metric.name: counter.result for counter in found}


@contextlib.contextmanager
def _progress(writer: DatasetWriter, total: int) -> Iterator[None]:
    """Say how many shards are there, whatever the runner, until the block ends."""
    done = threading.Event()

    def watch(progress: Progress) -> None:
        while True:
            ended = done.wait(_POLL_SECONDS)
            with contextlib.suppress(Exception):  # only a look
                progress.add(writer.files.count(PARTS, ".json") - progress.done)
            if ended:
                return

    with Progress(writer.name, total, "shard") as progress:
        progress.add(writer.files.count(PARTS, ".json"))
        thread = threading.Thread(target=watch, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _pipeline_options(runner: str, flags: Sequence[str]) -> PipelineOptions:
    bad = [flag for flag in flags if not flag.startswith("--")]
    if bad:
        raise UserError(f"{bad[0]!r} is no option of a runner; write them as --name=value")
    return PipelineOptions([f"--runner={runner}", *flags])
