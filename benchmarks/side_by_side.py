"""What tunescope takes against what its users would pick otherwise: the same work, in turn, in one process.

    pip install trl nanogcg modeldelta
    python benchmarks/side_by_side.py MODEL [--only sft dpo gcg weights] [--rounds 3]

MODEL is a folder of an instruction-tuned model, as `make runs/models/smollm2-135m` writes. All weights are trained, in
float32, on batches of the same 16 prompts: seconds a step are those of a run of 5 steps less one of 1. The reference of
DPO is computed before, by either. The suffix search has 20 tokens, 64 candidates among the best 256, and a batch of all
of them, without nanoGCG's cache of the prompt, which cannot read those of transformers 5; seconds a step are measured
in the same way. `weights` takes five matrices of MLPs, changed by noise. Ratios are of medians; below 1 tunescope is
faster.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunescope.attacks.suffix import suffixes
from tunescope.config import ComputeConfig, LanguageConfig, TuneConfig
from tunescope.models.checkpoint import load_model
from tunescope.models.compute import Compute, resolve
from tunescope.models.sites import weight
from tunescope.probes.spectra import spectrum
from tunescope.registry import import_all
from tunescope.rng import Stream
from tunescope.tasks.base import PreferenceBatch
from tunescope.tasks.language.prompts import read_prompts, read_text
from tunescope.tasks.language.readers import reader_of
from tunescope.tasks.language.task import Language
from tunescope.training.protocol import PROTOCOLS
from tunescope.training.tuning import reference_logps, tune

import_all("tunescope.training.protocols")
CPU, STREAM = torch.device("cpu"), Stream.named(0, "side by side")
BATCH, UNSAFE, FEW, MANY = 16, 4, 1, 5
TOKENS, CANDIDATES, TOP = 20, 64, 256
WORK = ["sft", "dpo", "gcg", "weights"]


class Lessons(Language):
    """The shipped instructions with passages of prose for answers; every batch is drawn once."""

    def __init__(self, folder: Path, reader: Any) -> None:
        rows, passages = read_prompts(("shipped:instructions",)), read_text("shipped:prose")
        file = folder / "prompts.jsonl"
        about = [
            {"prompt": row.prompt, "label": row.kind, "group": row.group, "answer": passages[n % len(passages)]}
            for n, row in enumerate(rows)
        ]
        file.write_text("\n".join(json.dumps(row) for row in about))
        super().__init__(LanguageConfig(prompts=(str(file),), new_tokens=32), CPU, reader)
        self.drawn = [super(Lessons, self).lesson(BATCH - UNSAFE, UNSAFE, STREAM(step)) for step in range(MANY)]
        self._next = 0

    def lesson(self, safe: int, unsafe: int, stream: Stream) -> PreferenceBatch:
        self._next += 1
        return self.drawn[(self._next - 1) % MANY]


def seconds(run: Callable[[int], object]) -> float:
    """Of one step: a run of many less one of few."""
    taken = []
    for steps in (FEW, MANY):
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run(steps)
        taken.append(time.perf_counter() - begun)
    return (taken[1] - taken[0]) / (MANY - FEW)


def rows_of(batch: PreferenceBatch) -> Iterator[dict[str, list[int]]]:
    """Prompt, wanted and other answer, without padding."""
    tokens, mask = batch.prompts.sequence, batch.prompts.mask
    for n in range(len(batch.safe)):
        prompt = tokens[n] if mask is None else tokens[n][mask[n].bool()]
        answers = (each[n][each[n] >= 0].tolist() for each in (batch.chosen, batch.rejected))
        yield dict(zip(("prompt", "chosen", "rejected"), (prompt.tolist(), *answers), strict=True))


def ours(model: PreTrainedModel, lessons: Lessons, compute: Compute, name: str) -> Callable[[int], object]:
    protocol = PROTOCOLS[name]
    known = None
    if protocol.reference == "logps":
        known = reference_logps(model, protocol, lessons, MANY, BATCH, UNSAFE, compute, STREAM).__getitem__

    def run(steps: int) -> None:
        policy = deepcopy(model).requires_grad_(True)
        config = TuneConfig(steps=steps, batch=BATCH, unsafe_share=UNSAFE / BATCH, warmup=1, checkpoints=1)
        lessons._next = 0
        about = (protocol, protocol.settings(), 1e-4, lessons, config, compute, STREAM)
        tune(policy, known, *about, label=name, due=(), save=lambda step, model: None)

    return run


def of_trl(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lessons: Lessons, name: str, folder: Path
) -> Callable[[int], object]:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    rows = [row for batch in lessons.drawn for row in rows_of(batch)]
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }

    def in_order(trainer: type) -> type:
        return type(
            trainer.__name__, (trainer,), {"_get_train_sampler": lambda self, data=None: SequentialSampler(data)}
        )

    def sft(steps: int) -> None:
        data = Dataset.from_list(
            [
                {
                    "input_ids": row["prompt"] + row["chosen"],
                    "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["chosen"]),
                }
                for row in rows
            ]
        )
        config = SFTConfig(**common, max_steps=steps, completion_only_loss=True, max_length=None, packing=False)
        policy = deepcopy(model).requires_grad_(True)
        in_order(SFTTrainer)(policy, config, train_dataset=data, processing_class=tokenizer).train()

    def dpo(steps: int) -> None:
        data = Dataset.from_list([{key: tokenizer.decode(ids) for key, ids in row.items()} for row in rows])
        config = DPOConfig(**common, max_steps=steps, max_length=None, precompute_ref_log_probs=True)
        policy = deepcopy(model).requires_grad_(True)
        frozen = deepcopy(model).requires_grad_(False)
        in_order(DPOTrainer)(
            policy, ref_model=frozen, args=config, train_dataset=data, processing_class=tokenizer
        ).train()

    return {"ssft": sft, "dpo": dpo}[name]


def gcg(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lessons: Lessons) -> list[Callable[[int], object]]:
    import nanogcg

    batch = lessons.draw("unsafe", 1, "score", STREAM)
    answer = batch.known()[0]
    asked, wanted = str(batch.describe(0)["prompt"]), lessons.text(answer[0])

    def mine(steps: int) -> Tensor:
        search = (TOKENS, steps, CANDIDATES, TOP, lessons.suffix_tokens, CANDIDATES)
        return suffixes(model, batch.prompts, answer, *search, STREAM("suffix")).tokens

    def theirs(steps: int) -> object:
        config = nanogcg.GCGConfig(
            num_steps=steps,
            search_width=CANDIDATES,
            batch_size=CANDIDATES,
            topk=TOP,
            optim_str_init=" x" * TOKENS,
            use_prefix_cache=False,  # it reads those of transformers 4
            verbosity="ERROR",
            seed=0,
        )
        return nanogcg.run(model, tokenizer, asked, wanted, config)

    return [mine, theirs]


def weights(model: PreTrainedModel) -> list[Callable[[int], object]]:
    """A step is one matrix of an MLP, and all that `tunescope weights` says of it, its null space among it."""
    from modeldelta.core.weight_diff import analyze_delta

    pairs = []
    for layer in range(MANY):
        w = weight(model, layer, "W_in").detach().float().contiguous()
        noise = STREAM("noise", layer).normal(tuple(w.shape), CPU).float()
        pairs.append((w, w + 0.01 * w.norm() / noise.norm() * noise))

    def mine(steps: int) -> None:
        for w, after in pairs[:steps]:
            spectrum(w, after - w)

    def theirs(steps: int) -> None:
        for w, after in pairs[:steps]:
            analyze_delta(w.clone(), after.clone())

    return [mine, theirs]


def told(name: str, mine: list[float], theirs: list[float], of: str) -> None:
    a, b = median(mine), median(theirs)
    ratios = sorted(x / y for x, y in zip(mine, theirs, strict=True))
    print(
        f"{name}: tunescope {a:.2f} s, {of} {version(of)} {b:.2f} s a step; ratio {a / b:.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} over {len(ratios)} rounds)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="+", default=WORK, choices=WORK)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, CPU)
    compute = resolve(ComputeConfig(device="cpu", dtype="float32", rows=BATCH))
    model.set_attn_implementation(compute.attention)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lessons = Lessons(folder, reader_of("base", tokenizer, "auto"))
        for what in options.only:
            if what == "gcg":
                pair, of = gcg(model.requires_grad_(False), tokenizer, lessons), "nanogcg"
            elif what == "weights":
                pair, of = weights(model), "modeldelta"
            else:
                name = {"sft": "ssft", "dpo": "dpo"}[what]
                pair = [ours(model, lessons, compute, name), of_trl(model, tokenizer, lessons, name, folder)]
                of = "trl"
            taken = [[seconds(run) for run in pair] for _ in range(options.rounds)]
            told(what, *map(list, zip(*taken, strict=True)), of)


if __name__ == "__main__":
    main()
