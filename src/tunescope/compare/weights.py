"""The weights of any base and fine-tuned model, read from disk matrix by matrix."""

import json
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tunescope import __version__
from tunescope.compare.sources import DESCRIPTION, check, explained, opened, sources, told
from tunescope.config import ComputeConfig
from tunescope.evidence.records import PAIR, Subject, merge_parts, write_part
from tunescope.files import sweep, write_text
from tunescope.folders import locked
from tunescope.measure.findings import Findings
from tunescope.measure.weights import measure_matrix
from tunescope.models.compute import resolve
from tunescope.report.html import render


@dataclass(frozen=True)
class _Matrix:
    """One kind of matrix of one layer, and where its records go."""

    layer: int
    name: str

    @property
    def part(self) -> str:
        return f"{self.name}-{self.layer:03d}"


def compare_weights(base: str, tuned: str, out: Path, *, exact: bool = False, device: str = "auto") -> Path:
    """Size, spectrum and null-space share of dW of every matrix (docs/metrics.md); returns the path of the report.

    No model is built: memory holds a few matrices. What was done before an interruption is not done again.

    Args:
        base, tuned: folders, or repositories on the hub, of safetensors; tuned may be a LoRA adapter.
        out: a new folder, or one of the same pair.
        exact: singular values by decomposition, not through Gram matrices (see `probes.spectra`).

    Raises:
        InputError: a model cannot be read, the two do not match, or `out` holds something else.
    """
    where = resolve(ComputeConfig(device=device)).device
    before, after = sources(base, tuned)
    pair = opened(before.folder, after.folder)
    matrices = [_Matrix(layer, name) for layer in range(pair.layers) for name in pair.names]
    this = {"version": __version__, "base": told(before), "tuned": told(after), "exact": exact}
    check(out, this)
    with locked(out):
        sweep(out)
        write_text(out / DESCRIPTION, json.dumps(this, indent=1))
        subject = Subject(after.label, PAIR, "", 0, 0)
        for matrix in tqdm(matrices, desc="weights", unit="matrix", disable=None):
            if not (out / f"parts/{matrix.part}.parquet").exists():
                found = Findings(subject)
                with explained(f"{matrix.name} of layer {matrix.layer}"):
                    measure_matrix(found, pair, matrix.layer, matrix.name, where, exact=exact)
                write_part(found.records, found.scores, out, matrix.part)
        merge_parts(out, [matrix.part for matrix in matrices])
        return render(out)
