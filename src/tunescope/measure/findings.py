"""What was measured of one model, gathered as records and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tunescope.evidence.records import Record, Scores, Subject
from tunescope.models.inputs import Inputs
from tunescope.probes import clusters
from tunescope.probes.behaviour import wilson

SAFE, UNSAFE = "safe", "unsafe"
NORMAL_95 = 1.96  # half width of a 95 % interval, in standard errors

PerPrompt = Float[Tensor, " n"]


@dataclass(frozen=True)
class Sample:
    """Prompts by kind: `fit` (safe and unsafe) gives class means, `score` is scored against them."""

    fit: Mapping[str, Inputs]
    score: Mapping[str, Inputs]

    @property
    def device(self) -> torch.device:
        """Where prompts lie, and what is read off them is computed."""
        return self.fit[SAFE].sequence.device

    def first(self, n: int) -> "Sample":
        """At most n of each kind."""
        return Sample({k: p[:n] for k, p in self.fit.items()}, {k: p[:n] for k, p in self.score.items()})


@dataclass
class Findings:
    """The records and scores of one subject, so far; layer, site, kind and control of each as keyword arguments."""

    subject: Subject
    records: list[Record] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)

    def value(self, metric: str, value: float, **where: Any) -> None:
        self.records.append(self.subject.record(metric, value, **where))

    def mean(self, metric: str, values: PerPrompt, **where: Any) -> None:
        """A mean over prompts with its 95 % interval (normal), and `<metric>_sd`, their standard deviation."""
        n, mean, deviation = len(values), values.mean().item(), values.std(correction=min(1, len(values) - 1)).item()
        half = NORMAL_95 * deviation / n**0.5
        self.value(metric, mean, low=mean - half, high=mean + half, n=n, **where)
        self.value(f"{metric}_sd", deviation, n=n, **where)

    def rate(self, metric: str, hits: Bool[Tensor, " *n"] | Float[Tensor, " *n"], **where: Any) -> None:
        """A share of prompts with its 95 % interval (Wilson); of a prompt hit in part the sum is rounded."""
        self.value(metric, **asdict(wilson(round(hits.sum().item()), hits.numel())), **where)

    def draws(self, metric: str, values: Sequence[float], **where: Any) -> None:
        """The mean over draws of a control, and the middle 95 % of them."""
        drawn = torch.tensor(values, dtype=torch.float64)
        low, high = drawn.quantile(drawn.new_tensor([0.025, 0.975])).tolist()
        self.value(metric, drawn.mean().item(), low=low, high=high, n=len(drawn), **where)

    def separation(self, metric: str, low: PerPrompt, high: Float[Tensor, " m"], **where: Any) -> None:
        """`<metric>_auc`: how often a prompt of the second class scores higher, with its 95 % interval (DeLong)."""
        value, error = clusters.auc(low, high)
        ends = {"low": max(0.0, value - NORMAL_95 * error), "high": min(1.0, value + NORMAL_95 * error)}
        self.value(f"{metric}_auc", value, n=len(low) + len(high), **ends, **where)

    def ratio(self, metric: str, below: PerPrompt, above: Float[Tensor, " m"], **where: Any) -> None:
        """`<metric>_ratio`: of geometric means, with its 95 % interval (normal, of the logarithm)."""
        logs = [logarithm(values) for values in (below, above)]
        middle = logs[1].mean() - logs[0].mean()
        half = NORMAL_95 * sum(log.var() / len(log) for log in logs) ** 0.5
        value, low, high = torch.stack([middle, middle - half, middle + half]).exp().tolist()
        self.value(f"{metric}_ratio", value, low=low, high=high, n=len(below) + len(above), **where)

    def score(self, metric: str, values: PerPrompt, **where: Any) -> None:
        self.scores.append(Scores(self.subject, metric, values.double().cpu().numpy(), **where))


def logarithm(values: PerPrompt) -> PerPrompt:
    """Natural, with zeros as 1e-12: a change that does nothing does it to all prompts alike."""
    return values.clamp(min=1e-12).log()
