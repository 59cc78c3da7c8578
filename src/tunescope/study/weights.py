"""The weights of any base and fine-tuned model, read from disk matrix by matrix, for pairs too large to load."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import __version__
from tunescope.config import ComputeConfig
from tunescope.errors import InputError, shown
from tunescope.files import sweep, write_text
from tunescope.models.compute import device_of
from tunescope.models.pair import open_pair
from tunescope.probes.measure.matrices import measure_matrix
from tunescope.progress import progress
from tunescope.records.findings import Findings
from tunescope.records.names import GIVEN
from tunescope.records.tables import Subject, merge_parts, write_part
from tunescope.report.html import render
from tunescope.study.context import explained
from tunescope.study.folders import LOCK, locked
from tunescope.study.sources import known_by, notes_on, with_weights

DESCRIPTION = "pair.json"  # by which the folder of a comparison of weights is known


@dataclass(frozen=True)
class _Matrix:
    """One kind of matrix of one layer, and where its records go."""

    layer: int
    name: str

    @property
    def part(self) -> str:
        return f"{self.name}-{self.layer:03d}"


def compare_weights(
    base: str | Path, tuned: str | Path, out: str | Path, *, exact: bool = False, device: str = "auto"
) -> Path:
    """Size, spectrum and null-space share of dW of every matrix (docs/metrics.md); returns the path of the report.

    No model is built: memory holds a few matrices. What was done before an interruption is not done again.

    Args:
        base, tuned: folders, or repositories on the hub, of safetensors; tuned may be a LoRA adapter.
        out: a new folder, or one of the same pair.
        exact: singular values by decomposition, not through Gram matrices (see `probes.spectra`).

    Raises:
        InputError: a model cannot be read, the two do not match, or `out` holds something else.
    """
    where, out = device_of(ComputeConfig(device=device)), Path(out)
    before, after = with_weights([str(base), str(tuned)])
    pair = open_pair(before.folder, after.folder)
    matrices = [_Matrix(layer, name) for layer in range(pair.layers) for name in pair.names]
    this = {"version": __version__, "base": known_by(before), "tuned": known_by(after), "exact": exact}
    _check(out, this)
    with locked(out):
        sweep(out)
        write_text(out / DESCRIPTION, json.dumps(this, indent=1))
        subject = Subject(after.label, GIVEN, "", 0, 0)
        for matrix in progress(matrices, desc="weights", unit="matrix"):
            if not (out / f"parts/{matrix.part}.parquet").exists():
                found = Findings(subject)
                with explained(f"{matrix.name} of layer {matrix.layer}"):
                    measure_matrix(found, pair, matrix.layer, matrix.name, where, exact=exact)
                write_part(found.records, found.scores, out, matrix.part)
        write_text(out / "notes.json", json.dumps(notes_on(pair, after.label), indent=1))
        merge_parts(out, [matrix.part for matrix in matrices])
        return render(out)


def _check(out: Path, known: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but this comparison.

    Raises:
        InputError: it does.
    """
    if not out.exists() or (
        out.is_dir() and not [e for e in out.iterdir() if e.name != LOCK and (not e.is_dir() or any(e.iterdir()))]
    ):
        return  # new, or left by a run that was stopped at its very start
    try:
        found = json.loads((out / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{out}: there already, and not a comparison of two models' weights ({shown(error)}); choose another --out"
        ) from error
    if found != known:
        changed = [key for key in known if not isinstance(found, dict) or found.get(key) != known[key]]
        raise InputError(f"{out}: holds a comparison with another {', '.join(changed)}; choose another --out")
