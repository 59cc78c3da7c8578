"""How long work will take: bars in a terminal; lines, now and then, where standard error is a file."""

import io
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 60.0  # between two lines about the same work


def progress(items: Iterable[Any] | None = None, **look: Any) -> "tqdm[Any]":
    """A tqdm over the items, gone once it is done; see there for the arguments."""
    if sys.stderr.isatty():
        return tqdm(items, leave=False, **look)
    # A process that works for one in a terminal: that one has a bar, which lines would break.
    return _Told(items, leave=False, disable=os.isatty(2), **look)


def say(line: str) -> None:
    """Tell whoever waits for a run."""
    tqdm.write(line, file=sys.stderr)


class _Told(tqdm):  # type: ignore[type-arg]
    """A bar that is told in lines; work that takes less than a minute is not mentioned."""

    def __init__(self, *items: Any, **look: Any) -> None:
        self.said = time.monotonic()
        super().__init__(*items, **look | {"file": io.StringIO()})  # where it may draw what it likes

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """What tqdm does when it would draw the bar."""
        if msg is None and time.monotonic() - self.said >= LINE_SECONDS:
            self.said = time.monotonic()
            say(self.line())

    def line(self) -> str:
        """As `tuning: step 12 of 64, 60 s so far, some 4 min left`."""
        told = self.format_dict
        n, total, elapsed = told["n"], told["total"], told["elapsed"]
        rate = (n - told["initial"]) / elapsed if elapsed else 0.0
        of = f" of {total}" if total else ""
        left = f", some {_spoken((total - n) / rate)} left" if total and rate else ""
        now = f"; now {self.postfix}" if self.postfix else ""
        return f"{self.desc.removesuffix(': ')}: {self.unit} {n}{of}, {_spoken(elapsed)} so far{left}{now}"


def _spoken(seconds: float) -> str:
    """A time as one number."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}" if size == 60 else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
