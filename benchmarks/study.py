"""Time of a whole study from start to report, stage by stage, as a share of the goal of 7 minutes on two cores.

python benchmarks/study.py [laptop] [KEY=VALUE ...]
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

GOAL_SECONDS = 420


def main() -> None:
    recipe, *changes = sys.argv[1:] or ["laptop"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tunescope.cli", "study", recipe, "--jobs", "auto", "--out", f"{folder}/run"]
        begun = time.perf_counter()
        subprocess.run([*command, *(["--set", *changes] if changes else [])], check=True)
        seconds = time.perf_counter() - begun
        stages = json.loads((Path(folder) / "run" / "stages.json").read_text())
    groups: dict[str, float] = defaultdict(float)
    for stage in stages:
        groups[stage["stage"].split("-")[0]] += stage["seconds"]
    for group, spent in groups.items():
        print(f"{group:<10} {spent:6.0f} s of one process")
    print(
        f"{recipe}: {seconds:.0f} s from start to report, {seconds / GOAL_SECONDS:.0%} of the goal of {GOAL_SECONDS} s"
    )


if __name__ == "__main__":
    main()
