"""Records of attacks with planted rates: forms with their controls, and searches with their budgets."""

from collections.abc import Sequence
from functools import partial

from tunescope.records.intervals import wilson
from tunescope.records.tables import Record

MODELS = [("base", "base", ""), ("ssft-eta", "ssft", "eta"), ("dpo-eta", "dpo", "eta")]
BUDGETS = (0, 42, 83, 125, 167, 208, 250)


def in_form(form: str, answered: dict[str, float], followed: float) -> list[Record]:
    """A form at two strengths: of each model the share of safe prompts in it that are answered, at the greater one."""
    out = []
    for model, protocol, rate in MODELS:
        for kind, dial in ((f"{start}{form}", dial) for start in ("jb_", "ok_") for dial in (0.0, 1.0)):
            about = {"kind": kind, "strength": dial, "attack": kind, "dial": dial, "n": 20}
            one = partial(Record, model, protocol, rate, 0, 9, **about)
            value = answered[protocol] if kind.startswith("ok_") and dial else 0.5
            out.append(one("compliance", value, low=value / 2, high=(1 + value) / 2))
            out.append(one("intact", followed if dial else 1.0, low=0.0, high=1.0))
            out.append(one("scaled_tau", 1.0))
    return out


def searched(attack: str, tries: int, curves: dict[str, Sequence[float]], n: int = 25) -> list[Record]:
    out = []
    for model, protocol, rate in MODELS:
        one = partial(Record, model, protocol, rate, 0, 9, kind="unsafe", attack=attack, dial=4.0)
        for budget, value in zip(BUDGETS, curves[protocol], strict=True):
            low, high = wilson(value, n)
            out.append(one("target_reached", value, budget=budget, low=low, high=high, n=n))
        out.append(one("prompts_tried", tries))
    return out
