"""How models and kinds of prompt are named and drawn, the same in every figure and table."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib.style
import pandas as pd
from matplotlib.colors import to_rgb

from tunescope.evidence.records import PAIR

BASE = "pretraining"  # the protocol of the base model
BENIGN = "benign"  # the protocol that is the control
NEUTRAL = "#595959"  # what belongs to no model: legends, guides
WIDTH = 7.0  # inches, a text width in print
Outcome = Literal["compliance", "refusal"]

# Colours of Okabe & Ito (2008), told apart under every common colour blindness.
PROTOCOLS = {
    BASE: ("base", "#000000"),
    "ssft": ("SSFT", "#0072B2"),
    "dpo": ("DPO", "#E69F00"),
    "unlearning": ("unlearning", "#009E73"),
    "benign": ("benign", "#999999"),
    PAIR: ("fine-tune", "#7A4FBF"),
}
CLASSES = {"safe": ("#009E73", "o"), "unsafe": ("#D55E00", "^")}  # as in the paper: green and red
SPARE = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442")  # for protocols that are not named above
RATES = {"": ("", "-"), "eta_m": ("ηₘ", "-"), "eta_s": ("ηₛ", (0, (3.5, 1.5)))}

_STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "text.parse_math": False,  # names come from data
    "svg.fonttype": "path",
    "svg.hashsalt": "tunescope",  # without it the ids in an SVG are random
    "pdf.fonttype": 42,  # editable text
}


@dataclass(frozen=True)
class Model:
    """A model as it appears in records: `name`, with the `protocol` and `rate` that made it."""

    name: str
    protocol: str
    rate: str

    @property
    def label(self) -> str:
        """What it is called: the protocol, then the learning rate."""
        return " ".join(filter(None, (protocol_label(self.protocol), rate_label(self.rate))))


@dataclass(frozen=True)
class Kind:
    """A kind of prompt: its `label`, of at most two lines, and which outcome a safe model would show on it."""

    name: str
    label: str
    wanted: Outcome


KINDS = {
    kind.name: kind
    for kind in (
        Kind("safe", "safe", "compliance"),
        Kind("unsafe", "unsafe", "refusal"),
        Kind("jb_co_task", "jailbreak:\ncompeting task", "refusal"),
        Kind("jb_co_text", "jailbreak:\ncompeting text", "refusal"),
        Kind("jb_misgen", "jailbreak:\nmismatched gen.", "refusal"),
        Kind("safe_dialect", "control:\nsafe in dialect", "compliance"),
    )
}


def style() -> AbstractContextManager[None]:
    """The look of every figure, whatever a user's matplotlibrc says; needed when drawing and when saving."""
    return matplotlib.style.context(["default", _STYLE])


def models_of(records: pd.DataFrame) -> list[Model]:
    """The models in `records`: the base first, then by protocol and learning rate; unknown ones last."""
    found = records[["model", "protocol", "learning_rate"]].drop_duplicates()
    models = [Model(*map(str, row)) for row in found.itertuples(index=False)]
    protocols, rates = [*PROTOCOLS, *(m.protocol for m in models)], [*RATES, *(m.rate for m in models)]
    return sorted(models, key=lambda model: (protocols.index(model.protocol), rates.index(model.rate)))


def rates_of(models: Iterable[Model]) -> list[str]:
    """The learning rates of fine-tuned models, in order; one without a name if none has one."""
    return list(dict.fromkeys(model.rate for model in models if model.rate)) or [""]


def kinds_of(records: pd.DataFrame) -> list[Kind]:
    """The kinds in `records`, known ones first; an unknown one wants compliance if its name begins with `safe`."""
    found = [str(kind) for kind in records["kind"].unique() if kind]
    unknown = [Kind(name, name.replace("_", " "), wanted(name)) for name in found if name not in KINDS]
    return [kind for name, kind in KINDS.items() if name in found] + unknown


def wanted(kind: str) -> Outcome:
    """What a safe model does with a prompt of this kind."""
    return "compliance" if kind.startswith("safe") else "refusal"


def protocol_label(protocol: str) -> str:
    return PROTOCOLS[protocol][0] if protocol in PROTOCOLS else protocol


def rate_label(rate: str) -> str:
    return RATES[rate][0] if rate in RATES else rate


def linestyle(rate: str) -> Any:
    """Solid for the larger learning rate, dashed for the smaller."""
    return RATES[rate][1] if rate in RATES else ":"


def looks_of(models: Iterable[Model]) -> dict[str, dict[str, Any]]:
    """How the curve of each model is drawn, by its name: colour and marker say the protocol, the rest the rate."""
    models = list(models)
    colour = colours(models)
    markers = dict(zip(colour, ("", "o", "s", "^", "D", "v", "P", "X", "*"), strict=False))
    return {
        model.name: {
            "color": colour[model.protocol],
            "ls": linestyle(model.rate),
            "lw": 1.9 if model.protocol == BASE else 1.1,  # the base is seen under a line that covers it
            "marker": markers.get(model.protocol, "."),
            "markerfacecolor": "white" if model.rate == "eta_s" else colour[model.protocol],
        }
        for model in models
    }


def colours(models: Iterable[Model]) -> dict[str, str]:
    """A colour for every protocol of `models`; the known ones always have the same."""
    unknown = list(dict.fromkeys(m.protocol for m in models if m.protocol not in PROTOCOLS))
    spare = {protocol: SPARE[index % len(SPARE)] for index, protocol in enumerate(unknown)}
    return {protocol: colour for protocol, (_, colour) in PROTOCOLS.items()} | spare


def tint(colour: str, share: float = 0.3) -> tuple[float, float, float]:
    """`share` of a colour in white."""
    red, green, blue = (1 - share * (1 - channel) for channel in to_rgb(colour))
    return red, green, blue
