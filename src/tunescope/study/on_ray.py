"""Stages as tasks of a Ray cluster (extra `ray`), which places them and repeats those of nodes that are lost."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tunescope.config import ComputeConfig
from tunescope.errors import InputError, shown
from tunescope.files import write_text
from tunescope.models.compute import deterministic
from tunescope.progress import progress
from tunescope.registry import load_plugins, plugin_files
from tunescope.settings import read_study
from tunescope.study.folders import CONFIG
from tunescope.study.stages import Done, Stage, is_done
from tunescope.study.store import Store, before
from tunescope.study.work import Executor, Failed, Outcome, Work, do, without
from tunescope.study.workers import laid_out, work_in

RETRIES = 3  # of a stage whose worker or node is lost, or whose disk fails
GIB = 2**30


def on_ray(address: str, store: str) -> Executor:
    """What runs stages on the cluster at this address; empty: the one at hand, or one that is started here.

    Raises:
        InputError: Ray is not installed, or the store cannot be used.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--on ray: Ray is not installed; pip install 'tunescope[ray]'") from error
    kept = Store(store) if store else None

    def execute(work: Sequence[Work]) -> Iterator[tuple[Work, Outcome]]:
        with _connected(address):
            for each in work:
                if kept and is_done(each.stage, each.folder):
                    kept.push(each.stage, each.folder)
            refs: dict[str, Any] = {}
            for each in work:
                task = ray.remote(_on_node).options(name=each.name, **_needs(each.folder))
                own = (each.folder.resolve(), each.skip, each.stage.name, each.same and each.same.resolve())
                config = (each.folder / CONFIG).read_text(encoding="utf-8")
                first = [refs[name] for name in each.needs]
                refs[each.name] = task.remote(*own, config, plugin_files(), store, *first)
            yield from _results(work, refs, kept)

    return execute


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Inside the block Ray is there; what was there before stays.

    Raises:
        InputError: no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _look_for(address)
        ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"--on ray:{address}: no cluster answers there: {shown(error, 200)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _look_for(address: str) -> None:
    """Ray itself would look for a minute for a cluster that is not there.

    Raises:
        OSError: nothing answers at `HOST:PORT`. Other addresses (`auto`, `ray://...`) are left to Ray.
    """
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _needs(folder: Path) -> dict[str, Any]:
    """What a stage of this run asks the cluster for."""
    import ray

    compute: ComputeConfig = read_study(folder / CONFIG).compute
    on_gpu = compute.device != "cpu" and (compute.device != "auto" or ray.cluster_resources().get("GPU", 0) > 0)
    return {
        "num_cpus": 1,
        "num_gpus": compute.gpu_share if on_gpu else 0,
        "memory": int(compute.memory * GIB) or None,
        "max_retries": RETRIES,
        "retry_exceptions": [OSError],
    }


def _results(work: Sequence[Work], refs: dict[str, Any], store: Store | None) -> Iterator[tuple[Work, Outcome]]:
    """Each piece of work when its task has ended; tasks that need what has failed end with it, and are passed over."""
    import ray

    waiting = {refs[each.name]: each for each in work}
    try:
        with progress(total=len(work), desc="stages", unit="stage") as bar:
            while waiting:
                for ref in ray.wait([*waiting], timeout=1, fetch_local=False)[0]:
                    if (each := waiting.pop(ref, None)) is None:
                        continue
                    bar.update()
                    try:
                        done: Done = ray.get(ref)
                    except ray.exceptions.RayError as error:
                        left = {one.name for one in without([*waiting.values()], [each.name])}
                        waiting = {ref: one for ref, one in waiting.items() if one.name in left}
                        yield each, Failed(_cause(error, each))
                        continue
                    if store:
                        store.pull([each.stage], each.folder)
                    yield each, done
    finally:
        for ref in waiting:
            ray.cancel(ref, force=True)


def _cause(error: Exception, work: Work) -> Exception:
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return cause
    return InputError(
        f"{work.name}: its worker was lost {RETRIES + 1} times, as where memory is too small. The same command goes on "
        f"from here; compute.memory says how much a stage needs ({shown(error)})."
    )


def _on_node(
    folder: Path,
    skip: tuple[str, ...],
    name: str,
    same: Path | None,
    config: str,
    plugins: Sequence[str],
    store: str,
    *_after: object,
) -> Done:
    """A stage, on whichever node this is: in the run folder where disks are shared, or else by way of the store."""
    torch.set_num_threads(1)
    load_plugins(plugins)
    if not store:
        if not (folder / CONFIG).is_file() or (folder / CONFIG).read_text(encoding="utf-8") != config:
            raise InputError(
                f"{folder}: is not on node {socket.gethostname()}; let --out be on a disk that all nodes share, "
                "or give --store a place that all can reach"
            )
        return work_in(folder, skip, name, same)
    kept = Store(store)
    with TemporaryDirectory() as place:
        here = Path(place) / folder.name
        write_text(here / CONFIG, config)
        device, stages = laid_out(here, skip, config)
        stage: Stage = stages[name]
        kept.pull([*before(stage), stage], here)
        there = None
        if same is not None:
            there = Path(place) / same.name
            kept.pull([stage], there)
        with deterministic(device):
            done = do(stage, here, there)
        kept.push(stage, here)
    return done
