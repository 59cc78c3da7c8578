"""How much of a pretraining step is matrix multiplication, at the rate this machine multiplies the same shapes.

    python benchmarks/training_step.py [gpt2|llama]

The share is: time of the step's matrix products alone (forward, and both products of the backward pass, every linear
layer of the model, at the step's dtype), divided by the time of the whole step, measured in turn.
"""

import sys
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from tunescope.config import Built
from tunescope.models.build import build_model
from tunescope.models.compute import resolve
from tunescope.recipes import laptop
from tunescope.rng import Stream
from tunescope.tasks.world.batches import pretraining_batch
from tunescope.tasks.world.world import build_world
from tunescope.training.optimizers import muon_and_adamw

ROUNDS = 15


def linear_shapes(model: PreTrainedModel, rows: int) -> list[tuple[int, int, int]]:
    """(rows, in, out) of every linear layer of one forward pass, seen by hooks."""
    shapes: list[tuple[int, int, int]] = []
    hooks = [
        module.register_forward_hook(
            lambda _m, inputs, output: shapes.append(
                (inputs[0].shape[:-1].numel(), inputs[0].shape[-1], output.shape[-1])
            )
        )
        for module in model.modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    ]
    with torch.no_grad():
        model(input_ids=torch.zeros(rows, SEQUENCE, dtype=torch.int64, device=model.device) + 1)
    for hook in hooks:
        hook.remove()
    return shapes


def products(shapes: list[tuple[int, int, int]], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """The three matrix products of every linear layer: forward, gradient of the input, gradient of the weight."""
    tensors = [
        (
            torch.randn(m, k, device=device).to(dtype),
            torch.randn(k, n, device=device).to(dtype),
            torch.randn(m, n, device=device).to(dtype),
        )
        for m, k, n in shapes
    ]

    def run() -> None:
        for a, w, g in tensors:
            a @ w
            g @ w.T
            a.T @ g

    return run


def timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    global SEQUENCE
    study = laptop()
    pretrain = study.base.pretrain
    architecture = sys.argv[1] if len(sys.argv) > 1 else "gpt2"
    compute = resolve(study.compute)
    world = build_world(study.task, compute.device)
    SEQUENCE = world.sequence_length - 1
    stream = Stream.named(0, "benchmark")
    model = build_model(
        Built(architecture=architecture), len(world.vocab), world.sequence_length, stream, compute.device
    )
    model.set_attn_implementation(compute.attention)
    optimizers = muon_and_adamw(model, pretrain, compute.dtype)
    parts = pretrain.batch // compute.rows

    def step() -> None:
        batch = pretraining_batch(world, pretrain.batch, stream("batch"), 0.5)
        for tokens, learn in zip(batch.tokens.split(compute.rows), batch.learn.split(compute.rows), strict=True):
            (-(compute.logps(model, tokens) * learn[:, 1:]).sum() / learn.sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    shapes = linear_shapes(model, compute.rows)
    multiply = products(shapes, compute.dtype, compute.device)
    step(), multiply()
    pairs = [(timed(step, compute.device), parts * timed(multiply, compute.device)) for _ in range(ROUNDS)]
    shares = sorted(b / a for a, b in pairs)
    whole, alone = (sorted(column)[ROUNDS // 2] for column in zip(*pairs, strict=True))
    flops = parts * 6 * sum(m * k * n for m, k, n in shapes)
    print(
        f"{architecture}, {pretrain.batch} x {SEQUENCE} tokens, {compute.dtype}, {compute.device}: "
        f"step {1e3 * whole:.0f} ms ({flops / whole / 1e9:.0f} GFLOP/s), "
        f"its matrix products alone {1e3 * alone:.0f} ms "
        f"({flops / alone / 1e9:.0f} GFLOP/s); share of the matrix-product rate: {shares[ROUNDS // 2]:.0%} "
        f"({shares[0]:.0%} to {shares[-1]:.0%} over {ROUNDS} pairs; goal 50%)"
    )


if __name__ == "__main__":
    main()
