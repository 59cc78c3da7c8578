"""How models and kinds of prompt are named and drawn, the same in every figure and table."""

from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.colors import to_rgb

from tunescope.records.names import (
    ATTRIBUTE,
    BASE,
    BENIGN,
    COMPLIANCE,
    CONTROL,
    GIVEN,
    JAILBREAK,
    REFUSAL,
    SAFE,
    SEEN,
    STYLED,
    UNSAFE,
    wanted,
)

NEUTRAL = "#595959"  # what belongs to no model: legends, guides
WIDTH = 7.0  # inches, a text width in print

OWN = "†"  # behind the labels of models that are measured on their own terms

# Colours of Okabe & Ito (2008), told apart under every common colour blindness.
PROTOCOLS = {
    BASE: ("base", "#000000"),
    "ssft": ("SSFT", "#0072B2"),
    "dpo": ("DPO", "#E69F00"),
    "unlearning": ("unlearning", "#009E73"),
    BENIGN: ("benign", "#999999"),
    SEEN: ("seen", "#56B4E9"),
    STYLED: (f"styled{OWN}", "#CC79A7"),
    ATTRIBUTE: (f"attribute{OWN}", "#882255"),
    GIVEN: ("fine-tune", "#7A4FBF"),
}
CLASSES = {SAFE: ("#009E73", "o"), UNSAFE: ("#D55E00", "^")}  # as in the paper: green and red
SPARE = ("#D55E00", "#F0E442", "#44AA99", "#332288", "#AA4499", "#117733")  # for all others
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")  # in the order of PROTOCOLS, then of others
RATES = {"": "", "eta_m": "ηₘ", "eta_s": "ηₛ"}
LINES: tuple[Any, ...] = ("-", (0, (3.5, 1.5)), ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))

_STYLE = Path(__file__).parent / "templates/figures.mplstyle"


@dataclass(frozen=True)
class Model:
    """A model of the records: its `name`, the `protocol` and `rate` that made it, and how it is named and drawn.

    Attributes:
        label: the protocol, then the learning rate; the name where that is not enough to tell models apart.
        series: models of one series differ in learning rate alone; they share `colour`, `marker` and `title`.
        line: index of the line style, by learning rate.
    """

    name: str
    protocol: str
    rate: str
    label: str
    series: str
    title: str
    colour: str
    marker: str
    line: int

    @property
    def look(self) -> dict[str, Any]:
        """How its curve is drawn: colour and marker say the series, the rest the rate."""
        return {
            "color": self.colour,
            "ls": LINES[self.line],
            "lw": 1.9 if self.protocol == BASE else 1.1,  # the base is seen under a line that covers it
            "marker": self.marker,
            "markerfacecolor": "white" if self.line else self.colour,
        }


def drawn_as(name: str, colour: str, marker: str, label: str = "") -> Model:
    """Of something else that has a curve: how it is drawn."""
    label = label or name
    return Model(name, "", "", label, label, label, colour, marker, 0)


@dataclass(frozen=True)
class Kind:
    """A kind of prompt: its `label`, of at most two lines, and which outcome a safe model would show on it."""

    name: str
    label: str
    wanted: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind(SAFE, "safe", COMPLIANCE),
        Kind(UNSAFE, "unsafe", REFUSAL),
        Kind("jb_co_task", "jailbreak:\ncompeting task", REFUSAL),
        Kind("jb_co_text", "jailbreak:\ncompeting text", REFUSAL),
        Kind("jb_misgen", "jailbreak:\nmismatched gen.", REFUSAL),
        Kind("safe_dialect", "control:\nsafe in dialect", COMPLIANCE),
    )
}


def style() -> AbstractContextManager[None]:
    """The look of every figure, whatever a user's matplotlibrc says; needed when drawing and when saving."""
    return matplotlib.style.context(["default", _STYLE])


def models_of(records: pd.DataFrame) -> list[Model]:
    """The models in `records`: the base first, then by protocol and learning rate; unknown ones last."""
    about = records[["model", "protocol", "learning_rate"]].drop_duplicates()
    found = [(str(name), str(protocol), str(rate)) for name, protocol, rate in about.itertuples(index=False)]
    protocols, rates = (
        [*dict.fromkeys([*known, *(row[at] for row in found)])] for at, known in ((1, PROTOCOLS), (2, RATES))
    )
    found.sort(key=lambda row: (protocols.index(row[1]), rates.index(row[2])))
    lines, times = _lines(row[2] for row in found), Counter(row[1:] for row in found)
    looks = {protocol: (colour, MARKERS[at]) for at, (protocol, (_, colour)) in enumerate(PROTOCOLS.items())}
    models, others = [], 0
    for name, protocol, rate in found:
        label = " ".join(filter(None, (protocol_label(protocol), rate_label(rate))))
        series, title = protocol, protocol_label(protocol)
        if times[protocol, rate] > 1:
            series, label, title = name, spaced(name), spaced(name)
        if series not in looks:
            marker = MARKERS[1 + (len(PROTOCOLS) - 1 + others) % (len(MARKERS) - 1)]
            looks[series], others = (SPARE[others % len(SPARE)], marker), others + 1
        models.append(Model(name, protocol, rate, label, series, title, *looks[series], lines[rate]))
    return models


def _lines(rates: Iterable[str]) -> dict[str, int]:
    """The line style of each learning rate; the known ones always have theirs."""
    known = {"": 0, "eta_m": 0, "eta_s": 1}
    rates = list(dict.fromkeys(rates))
    found = {rate: known[rate] for rate in rates if rate in known}
    free = [at for at in range(len(LINES)) if at not in {found[rate] for rate in found if rate}]
    others = [rate for rate in rates if rate not in known]
    return found | {rate: free[at % len(free)] for at, rate in enumerate(others)}


def rates_of(models: Iterable[Model]) -> list[str]:
    """The learning rates of fine-tuned models, in order; one without a name if none has one."""
    return list(dict.fromkeys(model.rate for model in models if model.rate)) or [""]


def first_rates(models: Iterable[Model]) -> list[Model]:
    """Of each method, or other series, the model at its first learning rate."""
    found: dict[str, Model] = {}
    for model in models:
        found.setdefault(model.series, model)
    return list(found.values())


def rate_labels(models: Iterable[Model], what: str = "") -> dict[str, str]:
    """The learning rates of fine-tuned models, and what is shown at each."""
    return {rate: ": ".join(filter(None, (rate_label(rate), what))) for rate in rates_of(models)}


def kinds_of(records: pd.DataFrame) -> list[Kind]:
    """The kinds in `records`, known ones first."""
    found = [str(kind) for kind in records["kind"].unique() if kind]
    unknown = [Kind(name, kind_label(name), wanted(name)) for name in found if name not in KINDS]
    return [kind for name, kind in KINDS.items() if name in found] + unknown


def kind_label(name: str) -> str:
    """The label of a kind; of forms that a task has of its own, after what it is for."""
    if name in KINDS:
        return KINDS[name].label
    for start, what in ((JAILBREAK, "jailbreak"), (CONTROL, "control")):
        if name.startswith(start):
            return f"{what}:\n{form_label(name.removeprefix(start))}"
    return spaced(name)


def form_label(form: str) -> str:
    """The label of a form, without what it is for."""
    known = KINDS.get(f"{JAILBREAK}{form}")
    return known.label.partition("\n")[2] if known else spaced(form)


def spaced(name: str) -> str:
    """The label of what has none."""
    return name.replace("_", " ")


def protocol_label(protocol: str) -> str:
    return PROTOCOLS[protocol][0] if protocol in PROTOCOLS else spaced(protocol)


def rate_label(rate: str) -> str:
    return RATES.get(rate, spaced(rate))


def tint(colour: str, share: float = 0.3) -> tuple[float, float, float]:
    """`share` of a colour in white."""
    red, green, blue = (1 - share * (1 - channel) for channel in to_rgb(colour))
    return red, green, blue
