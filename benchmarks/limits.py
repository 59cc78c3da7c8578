"""How close each stage of a study is to the machine's limit.

    python benchmarks/limits.py [laptop] [KEY=VALUE ...]

A study is run in one process. Of each stage it is counted which matrix products the models' linear layers ask for: one
in a forward pass, and two more where gradients of inputs and weights are taken. The same products are then timed alone,
each in the type in which it was done. `products`: their time as a share of the stage's. `forward passes`: the stage's
time as a multiple of that of plain forward passes with as many products, through the same kind of model, 512 prompts at
a time. Attention's own products, softmax, norms, optimizers, files and statistics are in the stage's time alone.
"""

import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import tunescope as ts
from tunescope.models.checkpoint import load_model
from tunescope.settings import override
from tunescope.study import stages, work
from tunescope.study.stages import Done, Stage
from tunescope.tasks.world.world import build_world

ROWS = 512


class Product(NamedTuple):
    """Of a matrix [rows, into] and one [into, out]."""

    rows: int
    into: int
    out: int
    dtype: torch.dtype

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.into * self.out


def main() -> None:
    recipe, *changes = sys.argv[1:] or ["laptop"]
    study = override(getattr(ts.recipes, recipe)(), changes)
    asked: dict[str, Counter[Product]] = defaultdict(Counter)
    taken: dict[str, float] = defaultdict(float)
    now = [""]
    hook = nn.modules.module.register_module_forward_hook(lambda m, x, y: asked[now[0]].update(products(m, x, y)))
    run_stage = stages.run_stage

    def watched(stage: Stage, folder: Path) -> Done:
        now[0] = named(stage)
        done = run_stage(stage, folder)
        taken[now[0]] += done.seconds
        return done

    setattr(work, "run_stage", watched)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        run = ts.run(study, Path(folder) / "run")
        hook.remove()
        model = load_model(run.models["base"], torch.device("cpu"), None)[0]
        rate = forward_rate(model, build_world(study.task, torch.device("cpu")).sequence_length)
    seconds = {each: timed(each) for each in set().union(*asked.values())}
    print(" ".join([recipe, *changes]), f"{torch.get_num_threads()} threads", f"{rate / 1e9:.0f} GFLOP/s", sep=", ")
    print("| stage | seconds | products | forward passes |\n| --- | --- | --- | --- |")
    for name, whole in taken.items():
        if not asked[name] or whole < 1:
            continue
        alone = sum(seconds[each] * times for each, times in asked[name].items())
        flops = sum(each.flops * times for each, times in asked[name].items())
        print(f"| {name} | {whole:.0f} | {alone / whole:.0%} | {whole * rate / flops:.1f} |")


def named(stage: Stage) -> str:
    """Its group, and of fine-tunes the protocol."""
    return f"tune-{getattr(stage.inputs, 'protocol', '')}" if stage.group == "tune" else stage.group


def products(module: Any, inputs: tuple[Any, ...], y: Any) -> Counter[Product]:
    """What a linear layer asks for, forward and, if there will be gradients, back."""
    if not isinstance(module, nn.Linear | Conv1D):
        return Counter()
    x: Tensor = inputs[0]
    rows, into, out = x.shape[:-1].numel(), x.shape[-1], y.shape[-1]
    found = Counter([Product(rows, into, out, y.dtype)])
    if y.requires_grad:
        found.update([Product(rows, out, into, y.dtype)] * x.requires_grad)
        found.update([Product(into, rows, out, y.dtype)] * bool(module.weight.requires_grad))
    return found


def timed(product: Product, most: float = 0.2) -> float:
    """Seconds: the median of as many as fit."""
    a = torch.randn(product.rows, product.into).to(product.dtype)
    b = torch.randn(product.into, product.out).to(product.dtype)
    a @ b
    taken: list[float] = []
    begun = time.perf_counter()
    while not taken or (time.perf_counter() - begun < most and len(taken) < 50):
        start = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


@torch.no_grad()
def forward_rate(model: PreTrainedModel, tokens: int, rounds: int = 5) -> float:
    """FLOP a second of the linear layers in plain forward passes, float32, fused attention."""
    ids = torch.ones(ROWS, tokens, dtype=torch.int64)
    asked: Counter[Product] = Counter()
    hook = nn.modules.module.register_module_forward_hook(lambda m, x, y: asked.update(products(m, x, y)))
    model(input_ids=ids)
    hook.remove()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        model(input_ids=ids)
        taken.append(time.perf_counter() - begun)
    return sum(each.flops * times for each, times in asked.items()) / sorted(taken)[rounds // 2]


if __name__ == "__main__":
    main()
