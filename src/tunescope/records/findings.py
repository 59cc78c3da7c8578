"""What was measured of one model, gathered as records and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tunescope.records import intervals
from tunescope.records.corrected import Errors, corrected
from tunescope.records.intervals import Estimate, Groups, PerPrompt
from tunescope.records.names import SAFE, UNSAFE
from tunescope.records.tables import Record, Scores, Subject


@dataclass
class Findings:
    """The records and scores of one subject, so far; layer, site, kind and so on of each as keyword arguments.

    Attributes:
        groups: by kind of prompt, the group of each prompt; a kind that is not there has none.
    """

    subject: Subject
    groups: Mapping[str, Groups] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)

    def value(self, metric: str, value: float, **where: Any) -> None:
        self.records.append(self.subject.record(metric, value, **where))

    def mean(self, metric: str, values: PerPrompt, **where: Any) -> None:
        """A mean over prompts with its 95 % interval (normal), and `<metric>_sd`, their standard deviation."""
        self._estimate(metric, intervals.mean(values, self._groups(where.get("kind", ""), len(values))), where)
        deviation = values.std(correction=min(1, len(values) - 1)).item()
        self.value(f"{metric}_sd", deviation, n=len(values), **where)

    def rate(self, metric: str, hits: Bool[Tensor, " n"] | PerPrompt, **where: Any) -> None:
        """A share of prompts with its 95 % interval (Wilson)."""
        self._estimate(metric, intervals.share(hits, self._groups(where.get("kind", ""), len(hits))), where)

    def corrected(self, metric: str, hits: Bool[Tensor, " n"], errors: Errors, **where: Any) -> None:
        """A share of prompts that a judge errs about, corrected, with its 95 % interval."""
        groups = self._groups(where.get("kind", ""), len(hits))
        n = intervals.effective_number(hits, groups)
        self._estimate(metric, replace(corrected(hits.double().mean().item(), n, errors), n=len(hits)), where)

    def draws(self, metric: str, values: Sequence[float], **where: Any) -> None:
        """The mean over draws of a control, and the middle 95 % of them."""
        drawn = torch.tensor(values, dtype=torch.float64)
        low, high = drawn.quantile(drawn.new_tensor([0.025, 0.975])).tolist()
        self.value(metric, drawn.mean().item(), low=low, high=high, n=len(drawn), **where)

    def separation(
        self, metric: str, low: PerPrompt, high: Float[Tensor, " m"], kinds: tuple[str, str], **where: Any
    ) -> None:
        """`<metric>_auc`: how often a prompt of the second of two kinds scores higher, with its 95 % interval."""
        self._estimate(f"{metric}_auc", intervals.auc(low, high, self._both(kinds, len(low), len(high))), where)

    def ratio(self, metric: str, below: PerPrompt, above: Float[Tensor, " m"], **where: Any) -> None:
        """`<metric>_ratio`: of the geometric means of unsafe and safe prompts, with its 95 % interval."""
        groups = self._both((SAFE, UNSAFE), len(below), len(above))
        self._estimate(f"{metric}_ratio", intervals.log_ratio(logarithm(below), logarithm(above), groups), where)

    def score(self, metric: str, values: PerPrompt, **where: Any) -> None:
        """The values of single prompts, or of draws of a control, that claims are tested on."""
        groups = None if where.get("control") else self._groups(where.get("kind", ""), len(values))
        self.scores.append(Scores(self.subject, metric, values.double().cpu().numpy(), groups=groups, **where))

    def _estimate(self, metric: str, found: Estimate, where: Mapping[str, Any]) -> None:
        self.value(metric, **asdict(found), **where)

    def _groups(self, kind: str, n: int) -> Groups:
        groups = self.groups.get(kind)
        return None if groups is None else groups[:n]

    def _both(self, kinds: tuple[str, str], first: int, second: int) -> Groups:
        of = [self._groups(kind, n) for kind, n in zip(kinds, (first, second), strict=True)]
        return None if of[0] is None or of[1] is None else np.concatenate([of[0], of[1]])


def logarithm(values: PerPrompt) -> PerPrompt:
    """Natural, with zeros as 1e-12: a change that does nothing does it to all prompts alike."""
    return values.clamp(min=1e-12).log()
