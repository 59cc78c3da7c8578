"""Any base and fine-tuned model, beside each other: so far their weights, read from disk matrix by matrix."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from tunescope import __version__
from tunescope.config import ComputeConfig
from tunescope.errors import InputError
from tunescope.evidence.records import PAIR, SCORES_SCHEMA, Subject, merge_tables, write_records, write_scores
from tunescope.files import sweep, write_text
from tunescope.folders import LOCK, locked
from tunescope.measure.findings import Findings
from tunescope.models.checkpoint import ADAPTER, convert_command, first_line
from tunescope.models.compute import resolve
from tunescope.models.hub import Source, fetched
from tunescope.models.shards import Adapter, Shards, require_pair
from tunescope.probes.spectra import gaussian_effective_rank, spectrum
from tunescope.probes.subspaces import haar_share
from tunescope.report.html import render

_DESCRIPTION = "pair.json"
_SETTINGS = ("config.json", "model.safetensors.index.json", ADAPTER)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class _Matrix:
    """One kind of matrix of one layer, and where its records go."""

    layer: int
    name: str

    @property
    def part(self) -> str:
        return f"{self.name}-{self.layer:03d}.parquet"


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
    for name in (base, tuned):
        fetched(name, _SETTINGS)  # of both before the weights of one: names may be wrong, and weights are large
    sources = [_with_weights(name) for name in (base, tuned)]
    before, after = _opened(*(source.folder for source in sources))
    matrices = [_Matrix(layer, name) for layer in range(before.layers) for name in before.names]
    told = {"version": __version__, "base": _told(sources[0]), "tuned": _told(sources[1]), "exact": exact}
    _check(out, told)
    with locked(out):
        sweep(out)
        write_text(out / _DESCRIPTION, json.dumps(told, indent=1))
        subject = Subject(sources[1].label, PAIR, "", 0, 0)
        for matrix in tqdm(matrices, desc="weights", unit="matrix", disable=None):
            # The records are written last: where they are, the scores are.
            if not (out / "parts" / matrix.part).exists():
                found = Findings(subject)
                with _explained(matrix):
                    w = before.matrix(matrix.layer, matrix.name)
                    delta = after.delta(matrix.layer, matrix.name, w)
                    _measure(found, matrix, w.to(where), delta.to(where), exact)
                write_scores(found.scores, out / "parts" / f"scores-{matrix.part}")
                write_records(found.records, out / "parts" / matrix.part)
        merge_tables([out / "parts" / matrix.part for matrix in matrices], out / "records.parquet")
        scores = [out / "parts" / f"scores-{matrix.part}" for matrix in matrices]
        merge_tables(scores, out / "scores.parquet", SCORES_SCHEMA)
        return render(out)


@contextmanager
def _explained(matrix: _Matrix) -> Iterator[None]:
    """Names the matrix at which memory or a decomposition failed."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.linalg.LinAlgError, SafetensorError) as error:  # type: ignore[attr-defined]
        raise InputError(f"{matrix.name} of layer {matrix.layer}: {first_line(error)}; try --device cpu") from error


def _opened(base: Path, tuned: Path) -> tuple[Shards, Shards | Adapter]:
    before = Shards(base)
    if (tuned / ADAPTER).exists():
        return before, Adapter(tuned, before)
    after = Shards(tuned)
    require_pair(before, after)
    return before, after


def _measure(
    found: Findings, matrix: _Matrix, w: Float[Tensor, "out in"], delta: Float[Tensor, "out in"], exact: bool
) -> None:
    size = w.double().norm().item()
    of = spectrum(w, delta, exact=exact)
    where = {"layer": matrix.layer, "site": matrix.name}
    found.value("relative_norm", of.values.square().sum().sqrt().item() / size if size else 0.0, **where)
    found.value("stable_rank", of.stable_rank, **where)
    found.value("effective_rank", of.effective_rank, **where)
    found.value("effective_rank", gaussian_effective_rank(*w.shape), control="gaussian", **where)
    if of.null_share is not None and of.rank is not None:
        found.value("null_share", of.null_share, **where)
        found.value("null_share", haar_share(len(w), of.rank), control="haar", **where)
    found.score("singular_value", of.values, kind=matrix.name, layer=matrix.layer)


def _with_weights(name: str) -> Source:
    source = fetched(name, (*_SETTINGS, *_WEIGHTS))
    if source.revision and not any(source.folder.glob("*.safetensors")):
        raise InputError(f"{name}: has no safetensors; convert what it has: {convert_command(source.label)}")
    return source


def _told(source: Source) -> dict[str, Any]:
    """What a model is known by: settings by their content, weights by their files' sizes and times."""
    settings = {name: source.folder / name for name in _SETTINGS}
    hashes = {name: sha256(file.read_bytes()).hexdigest() for name, file in settings.items() if file.exists()}
    files = sorted(source.folder.glob("*.safetensors"))
    stats = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    place = source.label if source.revision else str(source.folder)
    return {"name": place, "revision": source.revision, "settings": hashes, "files": stats}


def _check(out: Path, told: dict[str, Any]) -> None:
    """Raises InputError where a folder holds anything but this comparison."""
    if not out.exists() or (out.is_dir() and not [e for e in out.iterdir() if e.name not in (LOCK, "parts")]):
        return  # new, or left by a run that was stopped at its very start
    try:
        found = json.loads((out / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{out}: there already, and not a comparison of weights; choose another --out") from error
    if found != told:
        changed = [key for key in told if not isinstance(found, dict) or found.get(key) != told[key]]
        raise InputError(f"{out}: holds a comparison of another {', '.join(changed)}; choose another --out")
