"""Do verdicts hold elsewhere? Two reports of the same study, made on other machines, threads or types, side by side.

    python benchmarks/agreement.py runs/laptop elsewhere/laptop

Of the estimates of the second report, how many are inside the first one's 95 % intervals; and which verdicts differ.
"""

import json
import sys
from pathlib import Path
from typing import Any

Key = tuple[str, str, str]


def verdicts(folder: Path) -> dict[Key, dict[str, Any]]:
    told = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
    return {(v["claim"], v["model"], v["rung"]): v for v in told["verdicts"]}


def main() -> None:
    one, other = (verdicts(Path(folder)) for folder in sys.argv[1:3])
    both = [key for key in one if key in other and one[key]["low"] is not None]
    inside = sum(one[key]["low"] <= other[key]["estimate"] <= one[key]["high"] for key in both)
    changed = [key for key in both if one[key]["outcome"] != other[key]["outcome"]]
    print(f"{len(both)} verdicts in both; {len({*one} ^ {*other})} in one alone")
    print(f"estimates inside the intervals of the first: {inside} ({inside / len(both):.1%})")
    print(f"other verdicts: {len(changed)} ({len(changed) / len(both):.1%})")
    firm = [key for key in both if one[key]["firm"]]
    turned = [key for key in changed if one[key]["firm"]]
    print(f"of {len(firm)} firm verdicts: {len(turned)} ({len(turned) / max(1, len(firm)):.1%})")
    opened = [key for key in changed if "OPEN" in (one[key]["outcome"], other[key]["outcome"])]
    print(f"of these from or to OPEN: {len(opened)}")
    for key in changed:
        edge = "" if one[key]["firm"] else " (at the edge)"
        print(f"  {', '.join(key)}: {one[key]['outcome']} -> {other[key]['outcome']}{edge}")


if __name__ == "__main__":
    main()
