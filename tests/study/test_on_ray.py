"""Stages on a Ray cluster of several nodes of this machine: the same files as in one process, whatever is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from tunescope import cli
from tunescope.files import remove
from tunescope.study.on_ray import on_ray

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_report", "plugged")]

PROBED = 9  # a base, and four fine-tunes at two steps each

# Each time that it is begun it leaves the process, and the node, that it is in; the first time it waits to be killed.
COUNTED = """
import os, time
from pathlib import Path
import ray
from tunescope.probes.view import probe

@probe("counted")
def counted(view, findings):
    log = Path(__file__).with_suffix(".log")
    with log.open("a") as file:
        file.write(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}\\n")
    if len(log.read_text().splitlines()) == 1:
        time.sleep(600)
"""

# In a worker, the first table that is written finds the disk full.
FULL = """
import errno, sys
from pathlib import Path
from tunescope.records import tables

log = Path(__file__).with_suffix(".log")
kept = tables.pq.write_table

def write_table(*given, **named):
    with log.open("a") as file:
        file.write("begun\\n")
    if len(log.read_text().splitlines()) == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    return kept(*given, **named)

if "default_worker" in " ".join(sys.orig_argv):
    tables.pq.write_table = write_table
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of one core each; the first, where the driver is, stays."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


def plugin(folder: Path, code: str, name: str) -> list[str]:
    file = folder / f"{name}.py"
    file.write_text(code)
    return ["--plugin", str(file), "--set", f"probe.probes=[clusters, {name}]"]


def begun(log: Path, least: int = 1, seconds: float = 120) -> list[list[str]]:
    """The lines of a plug-in's log, as soon as there are so many."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if log.exists() and len(lines := log.read_text().splitlines()) >= least:
            return [line.split() for line in lines]
        time.sleep(0.1)
    raise AssertionError("the probe was not begun")


def test_three_nodes_make_what_one_process_makes(
    small_study: list[str], small_run: Path, tmp_path: Path, same_run: Callable, cluster: Cluster
) -> None:
    out = tmp_path / "run"
    assert cli.main([*small_study, "--out", str(out), "--on", f"ray:{cluster.address}"]) == 0
    same_run(out, small_run)


def test_nodes_that_share_no_disk(
    small_study: list[str], small_run: Path, tmp_path: Path, same_run: Callable, cluster: Cluster
) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    few = [*small_study, "--out", str(out), "--on", f"ray:{cluster.address}", "--store", store.as_uri()]
    assert cli.main(few) == 0
    same_run(out, small_run)
    assert (store / "run/stages/pretrain.json").is_file()


@pytest.mark.parametrize("lost", ["worker", "node"])
def test_what_is_lost_in_the_middle_is_done_again_and_nothing_else(
    lost: str, small_study: list[str], run_folder: Path, tmp_path: Path, cluster: Cluster
) -> None:
    extra = plugin(tmp_path, COUNTED, "counted")
    log = tmp_path / "counted.log"
    command = [*small_study, "--out", str(run_folder), "--update", "--on", f"ray:{cluster.address}", *extra]

    def kill() -> None:
        ((process, node), *_) = begun(log)
        if lost == "worker":
            os.kill(int(process), signal.SIGKILL)
            return
        raylet = next(each for each in cluster.list_all_nodes() if each.node_id == node)
        if raylet is cluster.head_node:  # the driver's own stays: its worker is killed, as before
            os.kill(int(process), signal.SIGKILL)
        else:
            cluster.remove_node(raylet, allow_graceful=False)

    killer = Thread(target=kill)
    killer.start()
    assert cli.main(command) == 0
    killer.join()
    assert len(begun(log)) == PROBED + 1


def test_a_full_disk_is_tried_again(
    small_study: list[str], small_run: Path, tmp_path: Path, cluster: Cluster, same_run: Callable
) -> None:
    (tmp_path / "full.py").write_text(FULL)
    out = tmp_path / "run"
    command = [*small_study, "--out", str(out), "--on", f"ray:{cluster.address}", "--plugin", str(tmp_path / "full.py")]
    assert cli.main(command) == 0
    assert len(begun(tmp_path / "full.log")) > 1
    same_run(out, small_run)


def test_a_folder_that_is_not_shared(
    small_study: list[str], run_folder: Path, tmp_path: Path, cluster: Cluster, refused: Callable
) -> None:
    """A node sees another config than the driver wrote: as if its disk were another one."""
    remove(run_folder / "parts")
    hidden = tmp_path / "hidden.py"
    hidden.write_text(
        "import sys\nfrom pathlib import Path\n"
        "if 'default_worker' in ' '.join(sys.orig_argv):\n"
        "    is_file = Path.is_file\n"
        f"    Path.is_file = lambda path: str(path) != {str(run_folder / 'config.yaml')!r} and is_file(path)\n"
    )
    command = [
        *small_study,
        "--out",
        str(run_folder),
        "--update",
        "--on",
        f"ray:{cluster.address}",
        "--plugin",
        str(hidden),
    ]
    refused(command, "is not on node", "--store")


def test_no_cluster_at_the_address(small_study: list[str], tmp_path: Path, refused: Callable) -> None:
    refused([*small_study, "--out", str(tmp_path / "run"), "--on", "ray:127.0.0.1:1"], "no cluster answers there")


def test_a_store_that_is_none() -> None:
    from tunescope.errors import InputError

    with pytest.raises(InputError, match="store: 'nowhere://x' cannot be used"):
        on_ray("", "nowhere://x")
