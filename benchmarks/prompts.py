"""Prompts per second, against a plain recursive sampler in the same process.

python benchmarks/prompts.py
"""

import random
import time
from collections.abc import Callable

import torch

from tunescope.recipes import laptop, paper
from tunescope.rng import Stream
from tunescope.tasks.world.batches import pretraining_batch
from tunescope.tasks.world.grammar import Rules, read_grammar_file
from tunescope.tasks.world.world import World, build_world

GOALS = {"laptop": 200_000, "paper": 50_000}
BATCH = 4096


def rate(make: Callable[[int], int], seconds: float = 3.0) -> float:
    """Calls `make(i)`, which returns how many it made, for a while; prompts per second."""
    make(0)
    made, i, begun = 0, 1, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        made += make(i)
        i += 1
    return made / (time.perf_counter() - begun)


def derive(rules: Rules, symbol: str | int, rng: random.Random) -> list[int]:
    """A whole derivation, the way the reference makes it."""
    if isinstance(symbol, int):
        return [symbol]
    return [terminal for child in rng.choice(rules[symbol]) for terminal in derive(rules, child, rng)]


def plain_prompt(world: World, maps: list[list[int]], rules: list[Rules], start: str, rng: random.Random) -> int:
    """One prompt and its answer, symbol by symbol; returns 1."""
    text = derive(rng.choice(rules), start, rng)
    length = rng.randint(*world.config.operand)
    first = rng.randint(0, len(text) - length)
    stage = text[first : first + length]
    for _ in range(world.slots):
        mapping = rng.choice(maps)
        stage = [mapping[s] for s in stage]
    return 1


def main() -> None:
    for study in (laptop(), paper()):
        world = build_world(study.task, torch.device("cpu"))
        maps = world.maps.tolist()
        stream = Stream.named(0, "benchmark")
        ours = rate(lambda i, world=world, stream=stream: len(pretraining_batch(world, BATCH, stream(i), 0.5).tokens))
        file = read_grammar_file(study.task.grammar)
        rules = [file.rules("full", k) for k in range(len(file.phrases))]
        rng = random.Random(0)
        plain = rate(lambda _, args=(world, maps, rules, file.start, rng): plain_prompt(*args))
        goal = GOALS[study.name]
        print(
            f"{study.name}: {ours:,.0f} prompts/s in batches of {BATCH} ({ours / goal:.1f} x the goal of {goal:,}), "
            f"{ours / plain:.0f} x a plain recursive sampler ({plain:,.0f}/s)"
        )


if __name__ == "__main__":
    main()
