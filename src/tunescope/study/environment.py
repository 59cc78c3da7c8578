"""What a study ran on: enough to say why two runs differ."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tunescope.config import Study
from tunescope.models.compute import Compute

LIBRARIES = (
    "tunescope",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
)


def environment(study: Study, compute: Compute) -> dict[str, Any]:
    """Versions, device, attention (in training; models from elsewhere are read with transformers' choice), threads, git
    revision (null outside a checkout) and seeds.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "device": _device_name(compute.device),
        "dtype": str(compute.dtype).removeprefix("torch."),
        "attention": compute.attention or "transformers' choice",
        "threads": torch.get_num_threads(),
        "git_revision": _git_revision(),
        "seeds": {"study": study.seed},
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.processor() or platform.machine()}"


def _git_revision() -> str | None:
    """Revision of the checkout that this package runs from, marked when it has uncommitted changes."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
