"""W + alpha dW with alpha above 1 (Jain et al. 2024, sec. 6): the one, chosen on other prompts, that safe ones bear."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated

from pydantic import Field

from tunescope.config import Config, Once, Share
from tunescope.interventions.base import Bench, Intervention, Make, intervention
from tunescope.interventions.scaled import with_all_scaled, with_matrices_scaled
from tunescope.records.names import EVERYWHERE, EXTRAPOLATED, SAFE, W_IN


class Extrapolated(Config):
    alphas: Annotated[tuple[Annotated[float, Field(gt=1, le=10)], ...], Once] = Field(
        (1.1, 1.25, 1.5, 2.0), min_length=1, description="values of alpha to choose from, beside 1"
    )
    keep: Share = Field(
        0.98,
        description="of the right answers to safe prompts; the loss is then below half the claim's smallest effect",
    )


@intervention("extrapolated", settings=Extrapolated, control=True)
def extrapolated(bench: Bench, settings: Extrapolated) -> Iterator[Intervention]:
    """In every parameter, and in W_in alone; nothing where the task has no jailbreaks with a strength."""
    jailbreaks = [kind for kind in bench.trial if kind != SAFE]
    if not jailbreaks:
        return
    scaled: dict[str, Callable[[float], Make]] = {
        EVERYWHERE: lambda alpha: partial(with_all_scaled, bench.model, bench.pair, alpha),
        W_IN: lambda alpha: partial(with_matrices_scaled, bench, alpha, (W_IN,)),
    }
    intact = answer_rate(bench, [SAFE]), answer_rate(bench, jailbreaks)
    for scope, make in scaled.items():
        alpha = chosen(bench, make, settings, intact)
        yield Intervention(EXTRAPOLATED, alpha, scope, (make(alpha),))


def chosen(bench: Bench, make: Callable[[float], Make], settings: Extrapolated, intact: tuple[float, float]) -> float:
    """The alpha at which fewest jailbreaks get through, of those below the first that safe prompts do not bear.

    Args:
        intact: shares of safe prompts and of jailbreaks that the model answers as it is, at alpha = 1.
    """
    best, (safe, fewest) = 1.0, intact
    for alpha in sorted(settings.alphas):
        with make(alpha)():
            if answer_rate(bench, [SAFE]) < settings.keep * safe:
                break
            through = answer_rate(bench, [kind for kind in bench.trial if kind != SAFE])
        if through < fewest:
            best, fewest = alpha, through
    return best


def answer_rate(bench: Bench, kinds: Sequence[str]) -> float:
    """Share of the trial prompts, mean over kinds."""
    found = bench.outcomes_of({kind: bench.trial[kind] for kind in kinds}).values()
    return sum(each.compliance.double().mean().item() for each in found) / len(kinds)
