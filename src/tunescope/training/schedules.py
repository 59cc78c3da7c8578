"""Learning-rate schedules: share of the peak at a step; None once training is over."""

import math

from tunescope.training.fit import Row, Schedule


def warmup_cosine(steps: int, warmup: int, final: float) -> Schedule:
    """Linear warm-up, then a cosine from the peak to `final` of it."""

    def schedule(step: int, history: list[Row]) -> float | None:
        if step >= steps:
            return None
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - 1 - warmup)
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return schedule


def settle_then_cool(steps: int, warmup: int, cooldown: int, metric: str, settled: float) -> Schedule:
    """Warm-up, then the peak until `metric` of the history reaches `settled`, then a linear decay to zero.

    The decay begins in time to end by `steps` even if the metric never gets there.
    """

    def schedule(step: int, history: list[Row]) -> float | None:
        latest = max(0, steps - cooldown)
        reached = next((int(row["step"]) for row in history if row.get(metric, -1.0) >= settled), latest)
        begin = min(reached, latest)
        if step >= min(steps, begin + cooldown):
            return None
        return min((step + 1) / max(1, warmup), (begin + cooldown - step) / cooldown, 1.0)

    return schedule
