"""Do verdicts hold elsewhere? Two reports of the same study, made on other machines, threads or types, side by side.

    python benchmarks/agreement.py runs/laptop elsewhere/laptop
    python benchmarks/agreement.py runs/laptop                     # what is to be expected, by the number of runs

Of the estimates of the second report, how many are inside the first one's 95 % intervals; and which verdicts differ.
Of one report alone: how many verdicts would differ between two studies like it, each of runs of its own. True effects
and deviations between runs are drawn from what its runs say of them (posterior of a normal sample, flat prior).
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from tunescope.evidence.verdicts import decide, is_firm

Key = tuple[str, str, str]
RUNS, DRAWS = (3, 5, 10, 20, 40), 400


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))


def verdicts(folder: Path) -> dict[Key, dict[str, Any]]:
    return {(v["claim"], v["model"], v["rung"]): v for v in told(folder)["verdicts"]}


def side_by_side(one: dict[Key, dict[str, Any]], other: dict[Key, dict[str, Any]]) -> None:
    both = [key for key in one if key in other and one[key]["low"] is not None]
    inside = sum(one[key]["low"] <= other[key]["estimate"] <= one[key]["high"] for key in both)
    changed = [key for key in both if one[key]["outcome"] != other[key]["outcome"]]
    opened = [key for key in changed if "OPEN" in (one[key]["outcome"], other[key]["outcome"])]
    firm = [key for key in both if one[key]["firm"]]
    turned = [key for key in changed if one[key]["firm"]]
    pairs = [(one[key]["per_run"], other[key]["per_run"]) for key in both]
    apart = [abs(a - b) / np.std(x, ddof=1) for x, y in pairs if np.std(x) for a, b in zip(x, y, strict=True)]
    print(f"{len(both)} verdicts in both; {len({*one} ^ {*other})} in one alone")
    print(f"estimates inside the intervals of the first: {inside} ({inside / len(both):.1%})")
    print(f"other verdicts: {len(changed)} ({len(changed) / len(both):.1%}), from or to OPEN: {len(opened)}")
    print(f"of {len(firm)} firm verdicts: {len(turned)} ({len(turned) / max(1, len(firm)):.1%})")
    print(f"the same run here and there: {np.median(apart):.2f} standard deviations between runs apart (median)")
    for key in changed:
        edge = "" if one[key]["firm"] else " (at the edge)"
        print(f"  {', '.join(key)}: {one[key]['outcome']} -> {other[key]['outcome']}{edge}")


def intervals(
    rng: np.random.Generator, mean: Float[np.ndarray, " d"], sd: Float[np.ndarray, " d"], n: int
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Ends of Student's interval, and standard error, of a study of n runs, for each of d true effects."""
    error = sd * np.sqrt(rng.chisquare(n - 1, len(sd)) / (n - 1) / n)
    middle, half = mean + sd / n**0.5 * rng.normal(size=len(sd)), stats.t.ppf(0.975, n - 1) * error
    return middle - half, middle + half, error


def expected(report: dict[str, Any]) -> None:
    """Share of verdicts that differ between two studies, of all and of those that are firm in the first."""
    smallest = {claim["name"]: claim["smallest"] for claim in report["claims"]}
    rng = np.random.default_rng(0)
    print("| runs | other verdicts | firm | of these other |\n|---|---|---|---|")
    for n in RUNS:
        found: list[tuple[bool, bool]] = []
        for v in report["verdicts"]:
            had, s = len(v["per_run"]), smallest[v["claim"]]
            sd = np.sqrt((had - 1) / rng.chisquare(had - 1, DRAWS)) * v["error"] * had**0.5
            mean = v["estimate"] + sd / had**0.5 * rng.normal(size=DRAWS)
            first, second = (zip(*intervals(rng, mean, sd, n), strict=True) for _ in range(2))
            for (low, high, error), (other_low, other_high, _) in zip(first, second, strict=True):
                differ = decide(low, high, 0.0, s) != decide(other_low, other_high, 0.0, s)
                found.append((is_firm(low, high, error, 0.0, s), differ))
        firm, differs = np.array(found).T
        print(f"| {n} | {differs.mean():.1%} | {firm.mean():.0%} | {differs[firm].mean():.1%} |")


def main() -> None:
    folders = [Path(folder) for folder in sys.argv[1:3]]
    if len(folders) == 2:
        side_by_side(*map(verdicts, folders))
    else:
        expected(told(folders[0]))


if __name__ == "__main__":
    main()
