"""The change of every weight matrix, against the matrix that it changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tunescope.config import ProbeConfig
from tunescope.measure.findings import Findings
from tunescope.models.sites import layer_count, weight, weight_names
from tunescope.probes import controls, subspaces
from tunescope.probes.subspaces import Svd
from tunescope.rng import Stream

CHANGED = "W_in"  # the matrix that the paper looks at
THRESHOLDS = (subspaces.RANK_THRESHOLD, 0.03, 0.1, 0.3)  # at which the rank of W is taken


@dataclass(frozen=True)
class Change:
    """The change of one W_in, and what stands in its place as a control.

    Attributes:
        stand_ins: dW itself under the empty name, then the controls `gaussian` and `rotated`.
    """

    delta: Svd
    stand_ins: Mapping[str, Float[Tensor, "out in"]]


def require_comparable(model: PreTrainedModel, base: PreTrainedModel | None) -> None:
    """Refuse models from which no numbers can come.

    Raises:
        ValueError: a parameter is not finite, or the two differ in layers.
    """
    if base and layer_count(base) != layer_count(model):
        raise ValueError(f"layers: {layer_count(base)} in the base, {layer_count(model)} in the other")
    for each in filter(None, (base, model)):
        for layer in range(layer_count(each)):
            for name in weight_names(each):
                if not weight(each, layer, name).isfinite().all():
                    raise ValueError(f"{name} of layer {layer}: has NaN or inf")
        for name, parameter in each.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(f"{name}: has NaN or inf")


def changes_of(base: PreTrainedModel, tuned: PreTrainedModel, stream: Stream) -> list[Change]:
    """The change of W_in in every layer."""
    changes = []
    for layer in range(layer_count(base)):
        matrix = delta_of(base, tuned, layer, CHANGED)
        delta = Svd.of(matrix)
        gaussian = controls.gaussian(matrix, stream("gaussian", layer))
        rotated = controls.rotated(delta, stream("rotated", layer))
        changes.append(Change(delta, {"": matrix, "gaussian": gaussian, "rotated": rotated}))
    return changes


def delta_of(base: PreTrainedModel, tuned: PreTrainedModel, layer: int, name: str) -> Float[Tensor, "out in"]:
    """dW, in float64: it is a difference of nearly equal numbers.

    Raises:
        ValueError: the shapes differ.
    """
    before, after = (weight(model, layer, name).double() for model in (base, tuned))
    if before.shape != after.shape:
        raise ValueError(f"{name} of layer {layer}: {list(before.shape)} in the base, {list(after.shape)} in the other")
    return after - before


def measure_weights(
    found: Findings,
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    changes: Sequence[Change],
    config: ProbeConfig,
    stream: Stream,
) -> None:
    """Observation 2, for every weight matrix; random controls and scores for W_in."""
    shares, drawn = [], []
    for layer in range(layer_count(base)):
        for name in weight_names(base):
            before, delta = weight(base, layer, name).double(), Svd.of(delta_of(base, tuned, layer, name))
            _measure_matrix(found, before, delta, layer=layer, site=name)
        before, delta = weight(base, layer, CHANGED).double(), changes[layer].delta
        columns = subspaces.column_space(before)
        normal = stream("bases", layer).normal((config.draws, len(before), min(before.shape)), before.device)
        lengths = subspaces.random_null_lengths(normal, columns.shape[1])
        shares.append(subspaces.null_share(delta, columns))
        drawn.append(subspaces.rotated_null_shares(delta, lengths))
        found.draws("null_share", drawn[-1].tolist(), control="rotated", layer=layer, site=CHANGED)
        gaussian = Svd.of(changes[layer].stand_ins["gaussian"])
        share = subspaces.null_share(gaussian, columns)
        found.value("null_share", share, control="gaussian", layer=layer, site=CHANGED)
        found.score("null_length", subspaces.null_lengths(delta.u, columns), layer=layer)
        found.score("energy", delta.energy, layer=layer)
    found.score("null_share", torch.tensor(shares).mean(0, keepdim=True))
    found.score("null_share", torch.stack(drawn).mean(0), control="rotated")


def _measure_matrix(found: Findings, before: Tensor, delta: Svd, *, layer: int, site: str) -> None:
    where = {"layer": layer, "site": site}
    size, whole = delta.s.norm().item(), before.norm().item()
    found.value("relative_norm", size / whole if whole else 0.0, **where)
    found.value("effective_rank", delta.effective_rank(), **where)
    decomposed = Svd.of(before)
    spaces = {threshold: decomposed.columns(threshold) for threshold in THRESHOLDS}
    for threshold, columns in spaces.items():
        found.value(f"null_share_at_{threshold:g}", subspaces.null_share(delta, columns), **where)
    columns = spaces[subspaces.RANK_THRESHOLD]
    found.value("null_share", subspaces.null_share(delta, columns), **where)
    found.value("null_share", subspaces.haar_share(*columns.shape), control="haar", **where)
    written = delta.u[:, : max(1, round(delta.effective_rank()))]
    angles = subspaces.principal_angles(written, columns)
    found.value("principal_angle", angles.mean().item() if len(angles) else 0.0, **where)
