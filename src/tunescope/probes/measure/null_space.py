"""Observation 2: does dW of W_in write into the left null space of W_in? (Jain et al. 2024)"""

import torch

from tunescope.probes import subspaces
from tunescope.probes.spectra import spectrum
from tunescope.probes.subspaces import arithmetic_for
from tunescope.probes.view import View, probe
from tunescope.records.findings import Findings
from tunescope.records.names import W_IN


@probe("null_space", needs_change=True, measures=("null_share", "null_length", "energy"))
def measure(view: View, found: Findings) -> None:
    """By layer: the share of dW in the null space, and that of dW in random directions and of normal entries."""
    shares, drawn, draws = [], [], view.config.draws
    for layer in range(view.layers):
        change = view.change(layer)
        if change is None:
            continue
        before, where = change.before, {"layer": layer, "site": W_IN}
        arithmetic = arithmetic_for(before)
        columns = arithmetic.decompose(before).columns(subspaces.RANK_THRESHOLD)
        lengths = arithmetic.random_null_lengths(
            view.stream("bases", layer), draws, len(before), min(before.shape), columns.shape[1], before.device
        )
        of_draws = subspaces.rotated_null_shares(change.delta, lengths)
        found.draws("null_share", of_draws.tolist(), control="rotated", **where)
        gaussian = spectrum(before, change.stand_ins["gaussian"]).null_share
        found.value("null_share", gaussian, control="gaussian", **where)
        found.score("null_length", subspaces.null_lengths(change.delta.u, columns), layer=layer)
        found.score("energy", change.delta.energy, layer=layer)
        written = change.delta.u[:, : max(1, round(change.delta.effective_rank()))]
        angles = subspaces.principal_angles(written, columns)
        found.value("principal_angle", angles.mean().item() if len(angles) else 0.0, **where)
        shares.append(of_draws.new_tensor([spectrum(before, change.stand_ins[""]).null_share]))
        drawn.append(of_draws)
        found.score("null_share", shares[-1], layer=layer)
        found.score("null_share", of_draws, control="rotated", layer=layer)
    if shares:
        found.score("null_share", torch.stack(shares).mean(0))
        found.score("null_share", torch.stack(drawn).mean(0), control="rotated")
