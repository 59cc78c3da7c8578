"""How stages are run: one after the other here, several at a time in processes of this machine, or on Ray."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tunescope.errors import InputError, shown
from tunescope.progress import progress
from tunescope.registry import plugin_files
from tunescope.study.stages import Done
from tunescope.study.work import Executor, Failed, Outcome, Work, do, without
from tunescope.study.workers import begin, work_in


@dataclass(frozen=True)
class Where:
    """Where stages run.

    Attributes:
        jobs: stages at a time on this machine, each in a process of its own with one thread; 1: in this process, with
            torch's threads; None: one per core.
        on: empty: on this machine. `ray`: on the Ray cluster at hand, or one that is started here; `ray:ADDRESS`.
        store: where nodes of a cluster that share no disk keep the files of runs: `s3://bucket/path`, or whatever
            pyarrow opens.
        log: tracker that is told what stages have measured, of `trackers.TRACKERS`; empty: none.
    """

    jobs: int | None = 1
    on: str = ""
    store: str = ""
    log: str = ""

    def executor(self) -> Executor:
        """Raises InputError: no such place, fewer jobs than one, or Ray is not installed."""
        kind, _, address = self.on.partition(":")
        if kind not in ("", "ray"):
            raise InputError(f"on: {shown(self.on)} is unknown; it must be ray, or ray:ADDRESS")
        if self.store and not kind:
            raise InputError("store: it is for runs on a cluster; give `--on ray`, too")
        if kind:
            from tunescope.study.on_ray import on_ray

            return on_ray(address, self.store)
        jobs = self._at_a_time()
        if jobs < 1:
            raise InputError(f"jobs: {jobs} must be at least 1")
        return _here if jobs == 1 else lambda work: _in_processes(work, jobs)

    def _at_a_time(self) -> int:
        return fitting_jobs() if self.jobs is None else self.jobs

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Inside the block torch uses one thread, as in the workers, where several stages run at a time."""
        before = torch.get_num_threads()
        alone = not self.on and self._at_a_time() == 1
        torch.set_num_threads(before if alone else 1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def fitting_jobs() -> int:
    """As many as this process may use cores; one where there is a GPU, which stages would have to share."""
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def _here(work: Sequence[Work]) -> Iterator[tuple[Work, Outcome]]:
    left = list(work)
    while left:
        each = left.pop(0)
        try:
            yield each, do(each.stage, each.folder, each.same)
        except Exception as error:  # of a stage, of which there may be others
            left = without(left, [each.name])
            yield each, Failed(error)


def _in_processes(work: Sequence[Work], jobs: int) -> Iterator[tuple[Work, Outcome]]:
    """Each stage starts once those that it comes after are done; the first in the list that can goes first."""
    waiting, running = list(work), dict[Future[Done], Work]()
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with (
        ProcessPoolExecutor(jobs, context, begin, (plugin_files(),)) as pool,
        progress(total=len(work), desc="stages", unit="stage") as bar,
    ):
        try:
            while waiting or running:
                open_still = {each.name for each in [*waiting, *running.values()]}
                ready = [each for each in waiting if open_still.isdisjoint(each.needs)]
                for each in ready[: jobs - len(running)]:
                    waiting.remove(each)
                    running[pool.submit(work_in, each.folder, each.skip, each.stage.name, each.same)] = each
                bar.set_postfix_str(", ".join(each.name for each in running.values()))
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    each, error = running.pop(future), future.exception()
                    if isinstance(error, BrokenProcessPool) or not isinstance(error, Exception | None):
                        raise error
                    if error is not None:
                        waiting = without(waiting, [each.name])
                    bar.update()
                    yield each, future.result() if error is None else Failed(error)
        except BrokenProcessPool as error:
            raise InputError(
                "A process that ran a stage was stopped from outside, as where memory is too small. The same command "
                "goes on from here; fewer --jobs need less memory."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
