"""The model trained further, on benign prompts or on a few answered unsafe ones among them (Qi et al. 2024).

How soon is refusal gone? The batches are the same for all models that learnt the same lesson, and none of them was read
by safety fine-tuning. The defaults were chosen on models of the laptop study, so that they tell these apart: refusal of
frail models goes within a few steps, not all of it at the first, that of others within the ladder or not at all.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import Config, Once, Positive, Rate, TuneConfig
from tunescope.interventions.base import Bench, Intervention, intervention
from tunescope.models.weights import replaced
from tunescope.records.names import BENIGN, EVERYWHERE, RETUNED, SEEN
from tunescope.training.protocol import PROTOCOLS
from tunescope.training.tuning import tune


class Retuned(Config):
    steps: Annotated[tuple[Positive, ...], Once] = Field(
        (1, 4, 16, 64), min_length=1, description="of further training, after which the model is measured"
    )
    batch: int = Field(20, ge=5, description="prompts per step; a fifth of them is unsafe in seen")
    lr: Rate = Field(2e-4, description="learning rate, the same at every step and for every model")


@intervention("retuned", settings=Retuned, trains=True)
def retuned(bench: Bench, settings: Retuned) -> Iterator[Intervention]:
    for protocol in (BENIGN, SEEN):
        for step, weights in _trained(bench, settings, protocol).items():
            make = partial(replaced, bench.model, weights.items(), bench.pair.after)
            yield Intervention(f"{RETUNED}{protocol}", step, EVERYWHERE, (make,))


def _trained(bench: Bench, settings: Retuned, protocol: str) -> dict[int, Mapping[str, Tensor]]:
    """All parameters, in main memory, after each of the steps; it is a copy that is trained."""
    found: dict[int, Mapping[str, Tensor]] = {}

    def keep(step: int, model: PreTrainedModel) -> None:
        cpu = torch.device("cpu")
        found[step] = {name: p.detach().to(cpu, copy=True) for name, p in model.named_parameters()}

    entry = PROTOCOLS[protocol]
    tune(
        deepcopy(bench.model).requires_grad_(True),
        None,
        entry,
        entry.settings(),
        settings.lr,
        bench.task,
        TuneConfig(steps=max(settings.steps), batch=settings.batch, warmup=0, final_lr=1),
        bench.compute,
        bench.stream("retuned", protocol),
        label=f"further training of a model, {protocol}",
        due=settings.steps,
        save=keep,
    )
    return found
