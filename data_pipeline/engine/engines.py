"""Engines: jobs to results in order, in this process, in several, or through Ray Data."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from data_pipeline.engine.workspace import BuildStoppedError
from face_mllm.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
ENGINES = ("local", "ray")
AHEAD = 2  # jobs that wait beside those in work: no worker idles, little is held in memory


class Engine(Protocol):
    """Runs one function over many jobs."""

    def __enter__(self) -> Engine:
        """Start; workers come up with the first jobs."""

    def __exit__(self, *error: object) -> None:
        """Stop the workers."""

    def run(
        self, work: Callable[[Job], Result], jobs: Iterator[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """Yield every job with its result, in the order of the jobs.

        ``jobs`` is read only a little ahead of the results. When it fails, the results of the
        jobs before come first: what a build reports does not depend on the number of workers.

        Args:
            work: picklable, and the same for any number of calls.
            jobs: picklable.
        """


def make_engine(name: str, workers: int | None) -> Engine:
    """Return an engine by name.

    Args:
        name: ``local`` or ``ray``.
        workers: processes, or CPUs of the cluster in use at a time; None takes all there are.

    Raises:
        UserError: an unknown name, no worker, or Ray is not installed.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers cannot work", "give 1 or more")
    if name == "local":
        return LocalEngine(workers or available_cpus())
    if name == "ray":
        from data_pipeline.engine.ray_data import RayEngine

        return RayEngine(workers)
    raise UserError(f"no engine {name!r}", f"choose from {', '.join(ENGINES)}")


def available_cpus() -> int:
    """Return the CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class LocalEngine:
    """Processes of this machine; with one worker, or one job, everything happens in place."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None

    def run(
        self, work: Callable[[Job], Result], jobs: Iterator[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """Yield every job with its result; see :class:`Engine`."""
        if self.workers == 1:
            for job in jobs:
                yield job, work(job)
            return
        waiting: deque[tuple[Job, Future[Result]]] = deque()
        failures: list[UserError] = []
        packed = pickle.dumps(work)  # once, for it holds the whole recipe
        try:
            for job in until_failure(jobs, failures):
                waiting.append((job, self._started().submit(_work, packed, job)))
                if len(waiting) >= self.workers + AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        except BrokenProcessPool as error:
            raise BuildStoppedError(
                "a worker process ended unexpectedly (out of memory?)",
                "run the same command again with fewer --workers: it goes on where it stopped",
            ) from error
        if failures:
            raise failures[0]

    def _started(self) -> ProcessPoolExecutor:
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)
        return self.pool


def _work(packed: bytes, job: Any) -> Any:
    return _unpacked(packed)(job)


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Any:
    return pickle.loads(packed)


def _finished(job: Job, future: Future[Result]) -> tuple[Job, Result]:
    return job, future.result()


def until_failure(jobs: Iterable[Job], failures: list[UserError]) -> Iterator[Job]:
    """Yield jobs; put the error that ends them into ``failures`` instead of raising it."""
    try:
        yield from jobs
    except UserError as error:
        failures.append(error)


def _start_worker() -> None:
    """Share out the cores, and end with the parent: one that is killed cannot say goodbye."""
    import pyarrow as pa

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
