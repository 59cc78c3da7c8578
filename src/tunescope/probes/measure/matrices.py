"""The change of every weight matrix, against the matrix that it changes."""

import torch

from tunescope.models.pair import Pair
from tunescope.probes import subspaces
from tunescope.probes.spectra import gaussian_effective_rank, spectrum
from tunescope.probes.subspaces import haar_share
from tunescope.probes.view import View, probe
from tunescope.records.findings import Findings

THRESHOLDS = (subspaces.RANK_THRESHOLD, 0.03, 0.1, 0.3)  # at which the rank of W is taken


@probe("matrices", needs_change=True, measures=("singular_value",))
def measure(view: View, found: Findings) -> None:
    assert view.pair is not None
    for layer in range(view.layers):
        for name in view.pair.names:
            measure_matrix(found, view.pair, layer, name, view.device)


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
