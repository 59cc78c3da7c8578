"""How often intervals over runs hold the true mean, and what effects they find: the tables of docs/claims.md.

python benchmarks/coverage.py
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

from tunescope.evidence.contrasts import Contrast, over_runs

RUNS, REPEATS, PROMPTS = (3, 5, 10), 4000, 200
Draw = Callable[[np.random.Generator, int], np.ndarray]

# What runs are on average, by name: the mean, and how runs are drawn.
WORLDS: dict[str, tuple[float, Draw, float | None]] = {
    "normal": (1.0, lambda rng, n: 1 + 0.3 * rng.normal(size=n), None),
    "skewed (exponential)": (1.0, lambda rng, n: rng.exponential(size=n), None),
    "two modes, one run of two in each": (0.5, lambda rng, n: (rng.random(n) < 0.5) + 0.05 * rng.normal(size=n), None),
    "two modes, one run of five in the other": (
        0.8,
        lambda rng, n: (rng.random(n) < 0.8) + 0.05 * rng.normal(size=n),
        None,
    ),
    "shares near 1 (beta 18, 1)": (18 / 19, lambda rng, n: rng.beta(18, 1, size=n), 1.0),
    "runs all alike, prompts alone vary": (0.9, lambda rng, n: np.full(n, 0.9), 1.0),
}


def seen(rng: np.random.Generator, mean: float, bound: float | None) -> Contrast:
    """What prompts say of one run."""
    if bound is None:
        return Contrast(mean + 0.1 * rng.normal(), 0.1, "prompts", PROMPTS)
    share = rng.binomial(PROMPTS, min(max(mean, 0.0), 1.0)) / PROMPTS
    return Contrast(share, (max(share * (1 - share), 0.5 / PROMPTS) / PROMPTS) ** 0.5, "prompts", PROMPTS)


def coverage(name: str, n: int) -> float:
    rng, (true, draw, bound) = np.random.default_rng(n), WORLDS[name]
    held = 0
    for _ in range(REPEATS):
        found = over_runs([seen(rng, mean, bound) for mean in draw(rng, n)], bound)
        held += found.low is not None and found.high is not None and found.low <= true <= found.high
    return held / REPEATS


def found_four_times_in_five(n: int) -> float:
    """How far an effect must be above the smallest one of interest, in standard deviations between runs."""
    quantile = stats.t.ppf(0.975, n - 1)
    return float(next(d for d in np.arange(0, 20, 0.01) if stats.nct.sf(quantile, n - 1, d * n**0.5) >= 0.8))


def main() -> None:
    print("| runs differ as | " + " | ".join(f"{n} runs" for n in RUNS) + " |")
    print("|---|" + "---|" * len(RUNS))
    for name in WORLDS:
        print(f"| {name} | " + " | ".join(f"{100 * coverage(name, n):.1f} %" for n in RUNS) + " |")
    print("\n| | " + " | ".join(f"{n} runs" for n in RUNS) + " |")
    print("|---|" + "---|" * len(RUNS))
    cells = (f"{found_four_times_in_five(n):.2f}" for n in RUNS)
    print("| found four times in five from this many sd above the smallest effect | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
