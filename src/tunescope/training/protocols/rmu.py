"""Representation misdirection for unlearning (Li et al. 2024): a loss on activations. It makes no refusals."""

from pydantic import Field

from tunescope.config import Base, Built, Config, Rate
from tunescope.errors import InputError
from tunescope.models.sites import Site, layer_count
from tunescope.tasks.base import Task
from tunescope.training import losses
from tunescope.training.losses import PerPrompt
from tunescope.training.protocol import Step, protocol


class Rmu(Config):
    layer: int | None = Field(None, ge=0, description="after which activations are driven away; null: the middle one")
    size: Rate = Field(4.0, description="length of the vector they are driven to, in mean lengths of an activation")
    retain_weight: float = Field(4.0, ge=0, description="weight of keeping safe activations as they were")


def _require_layer(layer: int | None, layers: int) -> None:
    if layer is not None and layer >= layers:
        raise InputError(f"tune.settings.rmu.layer: {layer}; this model's layers are 0 to {layers - 1}")


def _check(settings: Rmu, task: Task, base: Base) -> None:
    if isinstance(base, Built):
        _require_layer(settings.layer, base.layers)


@protocol("rmu", unsafe_share=0.5, reference="model", settings=Rmu, check=_check)
def rmu(step: Step, settings: Rmu) -> PerPrompt:
    layers = layer_count(step.policy)
    _require_layer(settings.layer, layers)
    layer = (layers - 1) // 2 if settings.layer is None else settings.layer
    (policy,), (reference,), learnt = step.activations(Site(layer, "resid_post"))
    direction = step.stream("control").normal((policy.shape[2],), policy.device).to(policy)
    # Of each prompt by itself: what else is in the batch, or in a part of it, is of no matter.
    lengths = (reference.norm(dim=-1) * learnt).sum(1, keepdim=True) / learnt.sum(1, keepdim=True)
    control = settings.size * lengths * direction / direction.norm()
    return losses.rmu(policy, reference, control, learnt, step.safe, settings.retain_weight)
