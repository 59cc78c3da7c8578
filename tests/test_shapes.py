"""A whole study with every annotated type and shape checked, as the slow tests have them."""

import os
import subprocess
import sys
from pathlib import Path

STUDY = """
import sys
import conftest, jaxtyping, torch
from tunescope.probes.subspaces import null_lengths
from tunescope.study import pipeline

try:
    null_lengths(torch.ones(3), torch.ones(3, 2))
except jaxtyping.TypeCheckError:
    print("checked")
pipeline.render = lambda folder: folder / "report.html"
sys.exit(conftest.cli.main(sys.argv[1:]))
"""


def test_whatever_crosses_a_function_has_the_shape_it_says(small_study: list[str], tmp_path: Path) -> None:
    """In a process of its own: checks must be in place before the package is imported."""
    command = [sys.executable, "-c", STUDY, *small_study, "--out", str(tmp_path / "run")]
    there = os.environ | {"CHECK_SHAPES": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("checked")
