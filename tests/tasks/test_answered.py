"""What greedy answers are: told by the fast way where that is exact, and generated and judged elsewhere."""

import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tunescope.tasks.base import answered


@dataclass
class Asked:
    """A task that says in which way it was asked."""

    exact: bool
    answer_length: int = 7
    calls: list[Any] = field(default_factory=list)

    def outcomes(self, model: Any, batch: Any, rows: int, prompts: Any = None) -> str:
        return f"fast, {prompts}"

    def judge(self, batch: Any, generated: Any) -> str:
        return f"judged {generated}"


class Says:
    """Greedy answers of a model."""

    model, rows = None, 4

    def __call__(self, prompts: Any, length: int) -> str:
        return f"{length} tokens behind {prompts}"


@pytest.mark.parametrize(
    ("exact", "given", "said"),
    [
        (True, 0, "fast, changed"),
        (False, 0, "judged 7 tokens behind changed"),
        (False, 3, "judged 4 tokens behind changed"),
        (False, 7, "judged 1 tokens behind changed"),
    ],
)
def test_only_where_it_is_exact_the_fast_way_counts(exact: bool, given: int, said: str) -> None:
    """What is begun in the prompt is not generated."""
    batch: Any = SimpleNamespace(given=given, prompts="own")
    task: Any = Asked(exact)
    asked = inspect.unwrap(answered)  # without checks of types, which the stand-ins are not of
    assert asked(task, Says(), batch, "changed") == said
    assert asked(task, Says(), batch) == said.replace("changed", "own" if not exact else "None")
