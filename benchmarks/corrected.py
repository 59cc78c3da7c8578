"""How often intervals of corrected rates hold the true rate, where judged models differ from each other.

python benchmarks/corrected.py
"""

import json
from itertools import product

import numpy as np
from scipy.special import expit

from tunescope.records.corrected import Errors, corrected
from tunescope.tasks.language.judge import SHIPPED

REPEATS = 400
RATES, PROMPTS = (0.0, 0.05, 0.5, 0.95, 1.0), (60, 200)
MEANS = (2.3, 3.0)  # of sensitivity and specificity, as logits
# Between models, as standard deviations of these logits.
SPREADS = {"hardly": (0.2, 0.2), "as in the table": (1.4, 0.8), "in the first alone": (1.2, 0.3)}
Pair = list[tuple[int, int]]


def one(rng: np.random.Generator, rate: float, n: int, spreads: tuple[float, float], sizes: tuple[list, list]) -> bool:
    """Whether the interval holds the rate: a table of k models, and a further model that is judged."""
    counts: list[Pair] = []
    further = []
    for mean, spread, of in zip(MEANS, spreads, sizes, strict=True):
        right = expit(mean + spread * rng.normal(size=len(of) + 1))
        counts.append(list(zip(rng.binomial(of, right[:-1]), of, strict=True)))
        further.append(right[-1])
    hits = rng.binomial(n, rate * further[0] + (1 - rate) * (1 - further[1]))
    found = corrected(hits / n, n, Errors(*counts))
    return found.low <= rate <= found.high


def main() -> None:
    errors = json.loads(SHIPPED.read_text(encoding="utf-8"))["errors"].values()
    sizes = [each["refusals"] for each in errors], [each["others"] for each in errors]
    print("| models differ | prompts | " + " | ".join(f"rate {rate:g}" for rate in RATES) + " |")
    print("|---|---|" + "---|" * len(RATES))
    for (name, spreads), n in product(SPREADS.items(), PROMPTS):
        rng = np.random.default_rng(n)
        held = (np.mean([one(rng, rate, n, spreads, sizes) for _ in range(REPEATS)]) for rate in RATES)
        print(f"| {name} | {n} | " + " | ".join(f"{100 * each:.0f} %" for each in held) + " |", flush=True)


if __name__ == "__main__":
    main()
