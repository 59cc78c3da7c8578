"""The change of every weight matrix, against the matrix that it changes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tunescope.measure.findings import Findings
from tunescope.models.pair import Pair
from tunescope.probes import controls, subspaces
from tunescope.probes.spectra import gaussian_effective_rank, spectrum
from tunescope.probes.subspaces import Arithmetic, Svd, haar_share
from tunescope.rng import Stream

CHANGED = "W_in"  # the matrix that the paper looks at
THRESHOLDS = (subspaces.RANK_THRESHOLD, 0.03, 0.1, 0.3)  # at which the rank of W is taken


@dataclass(frozen=True)
class Change:
    """The change of one W_in, and what stands in its place as a control.

    Attributes:
        before: W.
        turned: dW with its directions drawn at random.
        stand_ins: what acts on inputs, by control: dW itself under the empty name, then `gaussian` and `rotated`, of
            which the latter lacks the outputs' directions, as no norm depends on them.
    """

    before: Float[Tensor, "out in"]
    delta: Svd
    turned: Svd
    stand_ins: Mapping[str, Float[Tensor, "_ in"]]


def change_of(pair: Pair, layer: int, stream: Stream, arithmetic: Arithmetic, device: torch.device) -> Change:
    """The change of W_in in a layer."""
    before, matrix = (each.to(device) for each in pair.matrices(layer, CHANGED))
    delta = arithmetic.decompose(matrix)
    turned = controls.rotated(delta, stream("rotated", layer))
    rotated = turned.s[:, None] * turned.v.mT
    gaussian = controls.gaussian(matrix, stream("gaussian", layer))
    return Change(before, delta, turned, {"": matrix, "gaussian": gaussian, "rotated": rotated})


def measure_subspaces(
    found: Findings, change: Change, layer: int, draws: int, stream: Stream, arithmetic: Arithmetic
) -> tuple[float, Float[Tensor, " draws"]]:
    """Observation 2 for W_in of a layer; returns dW's share in the null space, and that of its rotated draws."""
    before, where = change.before, {"layer": layer, "site": CHANGED}
    columns = arithmetic.decompose(before).columns(subspaces.RANK_THRESHOLD)
    lengths = arithmetic.random_null_lengths(
        stream("bases", layer), draws, len(before), min(before.shape), columns.shape[1], before.device
    )
    share, drawn = subspaces.null_share(change.delta, columns), subspaces.rotated_null_shares(change.delta, lengths)
    found.draws("null_share", drawn.tolist(), control="rotated", **where)
    gaussian = arithmetic.decompose(change.stand_ins["gaussian"])
    found.value("null_share", subspaces.null_share(gaussian, columns), control="gaussian", **where)
    found.score("null_length", subspaces.null_lengths(change.delta.u, columns), layer=layer)
    found.score("energy", change.delta.energy, layer=layer)
    written = change.delta.u[:, : max(1, round(change.delta.effective_rank()))]
    angles = subspaces.principal_angles(written, columns)
    found.value("principal_angle", angles.mean().item() if len(angles) else 0.0, **where)
    return share, drawn


def measure_matrix(
    found: Findings, pair: Pair, layer: int, name: str, device: torch.device, *, exact: bool = False
) -> None:
    """Size, spectrum and null-space share of the change of any matrix; size alone where it has not changed."""
    w, delta = (each.to(device) for each in pair.matrices(layer, name))
    size, where = w.double().norm().item(), {"layer": layer, "site": name}
    found.value("relative_norm", delta.double().norm().item() / size if size else 0.0, **where)
    if not delta.any():
        return
    of = spectrum(w, delta, THRESHOLDS, exact=exact)
    found.value("stable_rank", of.stable_rank, **where)
    found.value("effective_rank", of.effective_rank, **where)
    found.value("effective_rank", gaussian_effective_rank(*w.shape), control="gaussian", **where)
    for threshold, (share, _) in of.null_shares.items():
        found.value(f"null_share_at_{threshold:g}", share, **where)
    if of.null_shares:
        share, rank = of.null_shares[subspaces.RANK_THRESHOLD]
        found.value("null_share", share, **where)
        found.value("null_share", haar_share(len(w), rank), control="haar", **where)
    found.score("singular_value", of.values, kind=name, layer=layer)
