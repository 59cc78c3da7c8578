"""What greedy answers are: told by the fast way where that is exact, and generated and judged elsewhere."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tunescope.tasks import base
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


@pytest.mark.parametrize(
    ("exact", "given", "said"),
    [(True, 0, "fast, changed"), (False, 3, "fast, changed"), (False, 0, "judged 7 tokens behind changed")],
)
def test_only_where_it_is_exact_the_fast_way_counts(
    exact: bool, given: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is begun in the prompt a task judges itself, since it knows what was given."""
    monkeypatch.setattr(base, "generate", lambda model, asked, length, dtype, rows: f"{length} tokens behind {asked}")
    batch: Any = SimpleNamespace(given=given, prompts="own")
    task: Any = Asked(exact)
    assert answered.__wrapped__(task, None, batch, 4, "changed") == said  # type: ignore[attr-defined]
