"""Prompts of a study's task, as a person or a program reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunescope.config import Study
from tunescope.models.compute import device_of
from tunescope.records.names import SAFE, UNSAFE
from tunescope.rng import Stream
from tunescope.study.context import build_task
from tunescope.study.graph import base_of, with_names


def prompts_of(study: Study, kind: str, n: int, strength: float | None) -> Iterator[dict[str, Any]]:
    """Prompts of one kind, each as plain data, with the column `label` that files of prompts have.

    Args:
        strength: of a jailbreak; None is the greatest.

    Raises:
        InputError: no such kind, or a strength that it does not have.
    """
    study = with_names(study)
    task = build_task(study.task, base_of(study), Path(), device_of(study.compute))
    about = task.kinds.get(kind)
    strength = strength if strength is not None else about.strongest if about else 0.0
    batch = task.draw(kind, n, "score", Stream.named(study.seed, "sample", kind), strength)
    for i in range(len(batch)):
        told = dict(batch.describe(i))
        yield told | ({"label": SAFE if told["safe"] else UNSAFE} if "safe" in told else {})
