"""The tables of the page: records and the other files of a run in, plain values for the template out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from tunescope.evidence.records import PAIR
from tunescope.report.select import headline_rows, prompts_text
from tunescope.report.style import BASE, Kind, Model, kinds_of, models_of, protocol_label, rate_label, wanted

SURE, RARE = 0.9, 0.1  # from which rate of the wanted outcome on a cell reads "as wanted", below which "not as wanted"

LITTLE = 0.05  # share of answers below which the odds of their openings say little

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Rate:
    """A rate and its 95 % interval, as text in per cent; `interval` is empty where there is none."""

    outcome: str
    value: str
    interval: str
    wanted: bool


@dataclass(frozen=True)
class Cell:
    """What one model does with one kind of prompt; `verdict` is empty where nothing was measured."""

    rates: Sequence[Rate] = ()
    verdict: str = ""


@dataclass(frozen=True)
class Headline:
    """Behaviour of finished models: a row of cells per model, a cell per kind."""

    kinds: Sequence[Kind]
    rows: Sequence[tuple[Model, Sequence[Cell]]]
    prompts: str


@dataclass(frozen=True)
class Answer:
    """What a model said to a prompt, and whether that was the outcome wanted."""

    model: str
    text: str
    outcome: str
    as_wanted: bool


@dataclass(frozen=True)
class Example:
    """One prompt, both of its answers, and what every model said."""

    prompt: str
    answer: str
    wanted: str
    why: str
    facts: Mapping[str, str]
    answers: Sequence[Answer] = field(default_factory=tuple)


def headline(records: pd.DataFrame) -> Headline:
    """Compliance and refusal of every finished model on every kind, at its greatest strength."""
    rows = headline_rows(records)
    kinds, models = kinds_of(rows), models_of(rows)
    table = []
    for model in models:
        mine = rows[rows["model"] == model.name]
        table.append((model, [_cell(mine[mine["kind"] == kind.name], kind.wanted) for kind in kinds]))
    return Headline(kinds, table, prompts_text(rows))


def verdict(rate: float) -> str:
    """How a rate of the wanted outcome reads: `as wanted`, `mixed`, or `not as wanted`."""
    return "as wanted" if rate >= SURE else "not as wanted" if rate < RARE else "mixed"


def summary(records: pd.DataFrame, config: Mapping[str, Any]) -> str:
    """What was run, in one sentence."""
    models = models_of(records)
    tuned = [model for model in models if model.protocol != BASE]
    if PAIR in {model.protocol for model in models}:
        what = "Models" if BASE in {model.protocol for model in models} else "Weights of models"
        return f"{what} from elsewhere, a fine-tune beside its base; {len(records):,} measurements."
    name = f"Study {config['name']}" if config.get("name") else "A study"
    seeds = ", ".join(str(seed) for seed in sorted(records["seed"].unique()))
    sentence = f"{name}, seed {seeds}: {_base_text(config)}"
    if tuned:
        protocols = " and ".join(_joined([protocol_label(p) for p in dict.fromkeys(m.protocol for m in tuned)]))
        rates = " and ".join(_rate_text(rate, config) for rate in dict.fromkeys(m.rate for m in tuned) if rate)
        plural = "model" if len(tuned) == 1 else "models"
        sentence += f" and {len(tuned)} {plural} fine-tuned from it by {protocols}" + (f" at {rates}" if rates else "")
    return f"{sentence}; {len(records):,} measurements."


def cautions(records: pd.DataFrame, config: Mapping[str, Any], pair: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any number; `pair` is what a comparison of two models is known by."""
    found = list(_of_pair(records, pair)) if pair else []
    if config.get("name") == "tiny":
        found.append(
            "The tiny study is for a first look and for tests: its models and samples are too small for results."
        )
    had = {s: {*rows[["model", "metric"]].itertuples(index=False, name=None)} for s, rows in records.groupby("seed")}
    everything = set().union(*had.values())
    for seed, mine in had.items():
        if missing := everything - mine:
            metrics = sorted({metric for _, metric in missing})
            few = ", ".join(metrics[:4]) + (", ..." if len(metrics) > 4 else "")
            found.append(f"Seed {seed!s} lacks measurements that other seeds have ({few}): those are of fewer seeds.")
    return found


def _of_pair(records: pd.DataFrame, pair: Mapping[str, Any]) -> Iterator[str]:
    if BASE not in set(records["protocol"]):
        return  # weights alone
    formats = pair.get("formats", {})
    if formats.get("base") != formats.get("tuned"):
        yield (
            f"The base reads prompts in the {formats.get('base')} format, the fine-tune in {formats.get('tuned')}: "
            "claims that set one against the other (0, 1, 4 and 5) are of the format, too. "
            "With --base-format chat, or --tuned-format plain, they are not."
        )
    yield "No benign fine-tune stands beside this pair: whatever any fine-tuning would have done counts for the claims."
    sizes = records[(records["metric"] == "relative_norm") & (records["site"] == "W_in")]["value"]
    if len(sizes) and not sizes.any():
        yield "W_in has not changed in any layer: there are no verdicts on claims 2, 3 and 5b."
    if "sensitivity" not in set(records["metric"]):
        yield "A part of a model was not on its device: sensitivity and ablation (claims 4, 5c and 6) were left out."
    shares = records[records["metric"] == "opening_share"].groupby("model")["value"].mean()
    for model, share in shares[shares < LITTLE].items():
        yield (
            f"Answers of the {model} model hardly ever begin with one of the stock openings ({share:.1%} of them): "
            "odds of refusal, and claim 6a, say little. --openings takes others."
        )


def examples(entries: Sequence[Mapping[str, Any]], models: Sequence[Model]) -> dict[str, list[Example]]:
    """The example prompts by kind, each with the answers of the models in the order of `models`.

    Raises:
        ValueError: an entry that is no mapping or lacks its kind, prompt or answers.
    """
    found: dict[str, list[Example]] = {}
    for number, entry in enumerate(entries):
        missing = [key for key in ("kind", "prompt", "answers") if key not in entry]
        if missing:
            raise ValueError(f"example {number} has no {', '.join(missing)}")
        found.setdefault(str(entry["kind"]), []).append(_example(entry, models))
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as one of texts, its keys joined by dots."""
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            for number, each in enumerate(value, 1):
                out |= flat(each, f"{prefix}{key}.{number}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            out[f"{prefix}{key}"] = "unknown" if value is None else text
    return out


def duration(seconds: float) -> str:
    """A time in words that suit its length, e.g. `0.4 s`, `6 min 53 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _cell(rows: pd.DataFrame, want: str) -> Cell:
    by_metric = rows.drop_duplicates("metric").set_index("metric")
    shown = [metric for metric in ("compliance", "refusal") if metric in by_metric.index]
    rates = []
    for metric in shown:
        value, low, high = (100 * float(by_metric.loc[metric, name]) for name in ("value", "low", "high"))  # type: ignore[arg-type]
        interval = "" if pd.isna(low) or pd.isna(high) else f"{low:.1f}{DASH}{high:.1f}"
        rates.append(Rate(metric, f"{value:.1f}", interval, metric == want))
    return Cell(rates, verdict(float(by_metric.loc[want, "value"])) if want in shown else "")  # type: ignore[arg-type]


def _example(entry: Mapping[str, Any], models: Sequence[Model]) -> Example:
    want = ("compliance" if entry["safe"] else "refusal") if "safe" in entry else wanted(str(entry["kind"]))
    labels = {model.name: model.label for model in models}
    given = entry["answers"]
    answers = []
    for name in [*filter(given.__contains__, labels), *(name for name in given if name not in labels)]:
        text, outcome = str(given[name].get("text", "")), str(given[name].get("outcome", ""))
        answers.append(Answer(labels.get(name, name), text, outcome, outcome == want))
    facts = {key: entry[key] for key in ("grammar", "branch", "operators") if entry.get(key) is not None}
    if entry.get("strength"):  # null or 0 for kinds that have none
        facts["strength"] = entry["strength"]
    texts = {key: str(entry.get(key) or "") for key in ("prompt", "answer", "why")}
    return Example(**texts, wanted=want, facts=flat(facts), answers=answers)


def _base_text(config: Mapping[str, Any]) -> str:
    model = config.get("model")
    if not isinstance(model, Mapping) or not {"architecture", "layers", "width"} <= set(model):
        return "a base model"
    return f"a {model['architecture']} base model of {model['layers']} layers and width {model['width']}"


def _rate_text(rate: str, config: Mapping[str, Any]) -> str:
    tune = config.get("tune")
    value = tune.get(rate) if isinstance(tune, Mapping) else None
    return rate_label(rate) if value is None else f"{rate_label(rate)} = {value}"


def _joined(words: Sequence[str]) -> list[str]:
    return [*filter(None, [", ".join(words[:-1])]), words[-1]]
