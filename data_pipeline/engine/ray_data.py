"""The same build on a Ray cluster, through Ray Data (extra ``ray``).

The driver reads the labels and hands out chunks of rows; pictures are opened, encoded and rendered
by the cluster's workers, which write to the folder of the dataset: on several machines it must
lie on storage all of them see, as must the sources.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from data_pipeline.engine.engines import Job, Result, until_failure
from face_mllm.errors import UserError

WAVE_PER_CPU = 8  # jobs handed to Ray Data at once, for each CPU


class RayEngine:
    """Runs jobs as Ray Data pipelines, a wave at a time so that the driver's memory is bounded.

    Connects to the cluster of ``RAY_ADDRESS``, or starts Ray on this machine.

    Args:
        workers: CPUs in use at a time; None takes all of the cluster.
    """

    def __init__(self, workers: int | None = None) -> None:
        try:
            import ray.data
        except ImportError as error:
            raise UserError(
                f"the engine ray needs Ray Data ({error})", "pip install 'face-mllm[ray]'"
            ) from error
        self.ray: Any = ray
        self.workers = workers
        self.ours = False

    def __enter__(self) -> RayEngine:
        if not self.ray.is_initialized():
            here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": self.workers}
            self.ray.init(log_to_driver=False, include_dashboard=False, **here)
            self.ours = True
        self.ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # two lines a wave otherwise
        return self

    def __exit__(self, *error: object) -> None:
        if self.ours:
            self.ray.shutdown()

    def run(
        self, work: Callable[[Job], Result], jobs: Iterator[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """Yield every job with its result; see :class:`~data_pipeline.engine.engines.Engine`."""
        size = WAVE_PER_CPU * (self.workers or int(self.ray.cluster_resources().get("CPU", 1)))
        failures: list[UserError] = []
        jobs = until_failure(jobs, failures)
        while wave := list(islice(jobs, size)):
            for job, (result, error) in zip(wave, self._wave(work, wave), strict=True):
                if error is not None:
                    raise error
                yield job, result
        if failures:
            raise failures[0]

    def _wave(self, work: Callable[[Job], Result], wave: list[Job]) -> Iterator[Any]:
        """Results in the order of the jobs, whichever ends first: each carries its place."""
        items = [{"place": place, "job": pickle.dumps(job)} for place, job in enumerate(wave)]
        data = self.ray.data.from_items(items, override_num_blocks=len(items))
        most = self.workers and min(self.workers, len(items))
        done = data.map(partial(_work, work), compute=self.ray.data.TaskPoolStrategy(most))
        rows = sorted(done.iter_rows(), key=lambda row: row["place"])
        return (pickle.loads(row["result"]) for row in rows)


def _work(work: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    """Run one job; a user's error comes back as a value, so that Ray does not wrap or retry it."""
    result: tuple[Any, UserError | None]
    try:
        result = (work(pickle.loads(row["job"])), None)
    except UserError as error:
        result = (None, error)
    return {"place": row["place"], "result": pickle.dumps(result)}
