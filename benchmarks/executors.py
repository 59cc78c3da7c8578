"""One sweep in this process, in two processes, and on a Ray cluster of three nodes of which one is killed: times, and
whether the tables are the same.

python benchmarks/executors.py [SPEC.yaml]
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there: what rounds in one way on one thread does not on two

import pandas as pd

from tunescope import cli

SPEC = """
name: executors
recipe: tiny
changes: {tunes: [ssft-eta_m, seen-eta_m], compute.dtype: float32}
grid: {base.width: [32, 64]}
seeds: [0, 1, 2]
skip: [attack, intervene, overlap]
"""
KILLED_AFTER = 3  # stages that have begun on Ray


def sweep(spec: Path, out: Path, *how: str) -> float:
    """Seconds that it took."""
    begun = time.perf_counter()
    if status := cli.main(["sweep", str(spec), "--out", str(out), *how]):
        raise SystemExit(status)
    return time.perf_counter() - begun


def on_ray(spec: Path, out: Path) -> float:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = [cluster.add_node(num_cpus=1) for _ in range(2)][-1]

    def kill() -> None:
        while len([*out.glob("points/*/stages/*.json")]) < KILLED_AFTER:
            time.sleep(0.1)
        cluster.remove_node(lost, allow_graceful=False)
        print("a node was killed", file=sys.stderr)

    Thread(target=kill, daemon=True).start()
    try:
        return sweep(spec, out, "--on", f"ray:{cluster.address}")
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "spec.yaml"
        if len(sys.argv) < 2:
            spec.write_text(SPEC)
        ways = {name: Path(folder) / name for name in ("one process", "two processes", "Ray, a node killed")}
        one, two, ray = ways.values()
        seconds = [sweep(spec, one), sweep(spec, two, "--jobs", "2"), on_ray(spec, ray)]
        for (name, out), spent in zip(ways.items(), seconds, strict=True):
            same = [
                pd.read_parquet(out / table).equals(pd.read_parquet(one / table))
                for table in ("records.parquet", "effects.parquet")
            ]
            print(f"{name:<20} {spent:6.0f} s   tables the same as in one process: {all(same)}")


if __name__ == "__main__":
    main()
