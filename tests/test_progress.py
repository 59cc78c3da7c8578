"""Progress where there is no terminal: lines now and then, and none about what is quick."""

import os

import pytest

from tunescope import progress as module
from tunescope.progress import progress


def test_what_takes_long_is_told_in_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    with progress(total=4, desc="tuning", unit="step", mininterval=0) as bar:
        bar.set_postfix_str("seed0/tune-ssft", refresh=False)
        bar.start_t -= 120  # as if it had begun two minutes ago
        bar.update(3)
    lines = capsys.readouterr().err.splitlines()
    assert "tuning: step 3 of 4, 2 min so far, some 40 s left; now seed0/tune-ssft" in lines


def test_what_is_quick_is_not_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(100), desc="probes", mininterval=0)) == [*range(100)]
    assert capsys.readouterr().err == ""


def test_a_worker_under_a_terminal_leaves_it_to_the_bar_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert list(progress(range(3), mininterval=0)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
