"""How stages are run: one after the other here, or several at a time in processes of this machine."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import torch
from tqdm import tqdm

from tunescope.errors import InputError
from tunescope.models.compute import deterministic, device_of
from tunescope.registry import load_plugins, plugin_files
from tunescope.settings import read_study
from tunescope.study.folders import CONFIG
from tunescope.study.graph import graph_of
from tunescope.study.stages import Done, Stage, run_stage


class Work(NamedTuple):
    """A stage, and whose it is: the folder of a run, whose config is in it already, and the groups that it skips."""

    stage: Stage
    folder: Path
    skip: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.folder.name}/{self.stage.name}"


# Runs all of the work, given in an order in which it can be done; yields each piece when it is.
Executor = Callable[[Sequence[Work]], Iterator[tuple[Work, Done]]]


def executor(jobs: int) -> Executor:
    """What runs so many stages at a time.

    Raises:
        InputError: fewer than one.
    """
    if jobs < 1:
        raise InputError(f"jobs: {jobs} must be at least 1")
    return _here if jobs == 1 else lambda work: _in_processes(work, jobs)


def fitting_jobs() -> int:
    """As many as this process may use cores; one where there is a GPU, which stages would have to share."""
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


@contextmanager
def threads(jobs: int) -> Iterator[None]:
    """Inside the block torch uses one thread, as in the workers, where several stages run at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if jobs == 1 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here(work: Sequence[Work]) -> Iterator[tuple[Work, Done]]:
    for each in work:
        yield each, run_stage(each.stage, each.folder)


def _in_processes(work: Sequence[Work], jobs: int) -> Iterator[tuple[Work, Done]]:
    """Each stage starts once those that it comes after are done; the first in the list that can goes first."""
    waiting, running = list(work), dict[Future[Done], Work]()
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with (
        ProcessPoolExecutor(jobs, context, _begin, (plugin_files(),)) as pool,
        tqdm(total=len(work), desc="stages", unit="stage", leave=False, disable=None) as bar,
    ):
        try:
            while waiting or running:
                open_still = {each.name for each in [*waiting, *running.values()]}
                ready = [w for w in waiting if not any(w._replace(stage=s).name in open_still for s in w.stage.after)]
                for each in ready[: jobs - len(running)]:
                    waiting.remove(each)
                    running[pool.submit(_work, each.stage.name, each.folder, each.skip)] = each
                bar.set_postfix_str(", ".join(each.name for each in running.values()))
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    done, each = future.result(), running.pop(future)
                    bar.update()
                    yield each, done
        except BrokenProcessPool as error:
            raise InputError(
                "A process that ran a stage was stopped from outside, as where memory is too small. The same command "
                "goes on from here; fewer --jobs need less memory."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Lines:
    """Standard error of a worker: lines are printed, and progress bars, which would overwrite each other, are not."""

    def __init__(self) -> None:
        self.write, self.flush = sys.stderr.write, sys.stderr.flush

    def isatty(self) -> bool:
        return False


def _begin(plugins: Sequence[str]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    sys.stderr = _Lines()
    torch.set_num_threads(1)
    load_plugins(plugins)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on with its stage, in a folder whose lock is free again."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@cache
def _laid_out(folder: Path, skip: tuple[str, ...]) -> tuple[torch.device, dict[str, Stage]]:
    study = read_study(folder / CONFIG)
    return device_of(study.compute), {stage.name: stage for stage in graph_of(study, folder, skip).stages}


def _work(name: str, folder: Path, skip: tuple[str, ...]) -> Done:
    device, stages = _laid_out(folder, skip)
    with deterministic(device):
        return run_stage(stages[name], folder)
