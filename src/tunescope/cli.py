"""The command line: parses, calls the library, and turns errors into one message."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from tunescope import __version__
from tunescope.config import Study
from tunescope.errors import InputError
from tunescope.recipes import RECIPES
from tunescope.settings import override
from tunescope.stages import LOOKS
from tunescope.world.kinds import Kind

BAD_INPUT, INTERRUPTED = 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except KeyboardInterrupt:
        print("\ntunescope: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"tunescope: {_explain(error)}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunescope", description="What does safety fine-tuning change inside a language model?"
    )
    parser.add_argument("--version", action="version", version=f"tunescope {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    study = commands.add_parser(
        "study",
        help="train, tune, measure and report",
        description="Run a study, or go on with one; the report is at DIR/report.html.",
    )
    _add_recipe(study)
    study.add_argument(
        "--seed", type=int, nargs="+", metavar="N", help="seed of weights and data (default: 0); several run in turn"
    )
    study.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="run folder (default: runs/RECIPE-seedN); of several seeds the report on all (default: runs/RECIPE), "
        "each of which runs in DIR-seedN",
    )
    study.add_argument("--update", action="store_true", help="bring a folder with other settings up to these")
    which = study.add_mutually_exclusive_group()
    looks = ", ".join(LOOKS)
    which.add_argument("--skip", nargs="+", default=[], metavar="STAGE", help=f"do not run some of {looks}")
    which.add_argument(
        "--only", nargs="+", metavar="STAGE", help="of these stages do only some; models are always made"
    )
    study.set_defaults(command=_study)

    sample = commands.add_parser("sample", help="print prompts of a world", description="Print prompts of a world.")
    _add_recipe(sample)
    sample.add_argument("--seed", type=int, metavar="N", help="which prompts (default: 0)")
    sample.add_argument("--kind", default="safe", metavar="KIND", help=f"one of {', '.join(Kind)} (default: safe)")
    sample.add_argument("-n", type=int, default=5, metavar="N", help="how many (default: 5)")
    sample.add_argument("--strength", type=float, metavar="S", help="of a jailbreak, in [0, 1] (default: 1)")
    sample.add_argument("--json", action="store_true", help="one JSON object a line")
    sample.set_defaults(command=_sample)

    weights = commands.add_parser(
        "weights",
        help="what changed in the weights of any two models",
        description="Size, spectrum and null-space share of the change of every weight matrix, read from safetensors "
        "without building a model; the report is at DIR/report.html.",
    )
    _add_pair(weights)
    weights.add_argument("--svd", action="store_true", help="full decompositions instead of Gram matrices (slower)")
    weights.set_defaults(command=_weights)

    compare = commands.add_parser(
        "compare",
        help="every probe on any two models, with prompts in natural language",
        description="What two models do with safe and unsafe prompts, what differs inside them, and which claims hold; "
        "the report is at DIR/report.html. The same command goes on after an interruption.",
    )
    _add_pair(compare)
    compare.add_argument(
        "--prompts",
        nargs="+",
        default=[],
        metavar="[KIND=]FILE",
        help="jsonl, csv, parquet or text; with a column `label` (safe, unsafe), or all of one KIND: safe, unsafe, or "
        "a name of your own for prompts under an attack (default: instructions that come with tunescope)",
    )
    for name in ("base", "tuned"):
        compare.add_argument(
            f"--{name}-format",
            choices=("auto", "chat", "plain"),
            default="auto",
            help=f"prompts of the {name} model in its chat template or plain (default: chat where it has one)",
        )
    compare.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the parameters (default: what the model's config says)",
    )
    compare.add_argument(
        "--memory",
        nargs="+",
        default=[],
        metavar="PLACE=SIZE",
        help="spread a model over GPUs, main memory and disk, with at most so much of each: 0=20GiB cpu=8GiB",
    )
    compare.add_argument(
        "--openings", metavar="FILE", help="JSON with lists `refusal` and `compliance` of how answers begin"
    )
    compare.add_argument(
        "--new-tokens", type=int, default=32, metavar="N", help="length of the answers that are judged (default: 32)"
    )
    compare.add_argument("--seed", type=int, default=0, metavar="N", help="of random controls (default: 0)")
    compare.set_defaults(command=_compare)

    report = commands.add_parser(
        "report",
        help="judge and draw again",
        description="Verdicts, figures and report again, from the records of a run, or of several seeds together.",
    )
    report.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a run folder; several: seeds of one study"
    )
    report.add_argument("--out", type=Path, metavar="DIR", help="where the report on several goes")
    report.set_defaults(command=_report)
    return parser


def _add_pair(command: argparse.ArgumentParser) -> None:
    for name, what in (("base", "the model before"), ("tuned", "and after fine-tuning, or a LoRA adapter")):
        command.add_argument(name, metavar=name.upper(), help=f"{what}: a folder, or a hub's owner/name[@revision]")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    recipes = " ".join(f"{name}: {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items())
    command.add_argument("recipe", metavar="RECIPE", help=recipes)
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change settings, e.g. tune.steps=300 model.architecture=llama",
    )


def _resolve(options: argparse.Namespace) -> Study:
    if options.recipe not in RECIPES:
        raise InputError(f"recipe: {options.recipe!r} is none; there are {', '.join(RECIPES)}")
    return override(RECIPES[options.recipe](), options.set)


def _study(options: argparse.Namespace) -> None:
    study = _resolve(options)
    seeds = list(dict.fromkeys(options.seed or [study.seed]))
    studies = [override(study, [f"seed={seed}"]) for seed in seeds]
    several = len(seeds) > 1
    folder = options.out or Path("runs") / (study.name if several else f"{study.name}-seed{seeds[0]}")
    for option, named in (("--only", options.only or []), ("--skip", options.skip)):
        if unknown := set(named) - {*LOOKS}:
            raise InputError(f"{option}: {', '.join(sorted(unknown))} cannot be left out; there are {', '.join(LOOKS)}")
    skip = [name for name in LOOKS if name not in options.only] if options.only else options.skip

    from tunescope import pipeline  # torch and transformers take seconds to import: only when they are needed

    if several:
        print(pipeline.run_seeds(studies, folder, update=options.update, skip=skip))
    else:
        print(pipeline.run(studies[0], folder, update=options.update, skip=skip))


def _sample(options: argparse.Namespace) -> None:
    import torch

    from tunescope.rng import Stream
    from tunescope.world.describe import describe
    from tunescope.world.prompts import sample_prompts
    from tunescope.world.world import build_world

    study = override(_resolve(options), [f"seed={options.seed}"] if options.seed is not None else [])
    if options.kind not in [*Kind]:
        raise InputError(f"--kind: {options.kind!r} is none; there are {', '.join(Kind)}")
    if options.n < 1:
        raise InputError(f"-n: {options.n} must be at least 1")
    kind = Kind(options.kind)
    strength = options.strength if options.strength is not None else float(kind.has_strength)
    world = build_world(study.world, torch.device("cpu"))
    prompts = sample_prompts(world, kind, options.n, Stream.named(study.seed, "sample", str(kind)), strength)
    for i in range(options.n):
        row = describe(world, prompts, i)
        print(json.dumps(row) if options.json else _readable(row))


def _readable(row: dict[str, Any]) -> str:
    label = "safe: answer" if row["safe"] else "unsafe: refuse"
    strength = f" (strength {row['strength']:g})" if row["strength"] else ""
    lines = {
        "prompt": row["prompt"],
        "operators": ", ".join(f"op{op}" for op in row["operators"]),
        "operand": row["operand"],
        "wanted": row["wanted"],
        "obeyed": row["answer"],
        "label": f"{row['kind']}{strength}, {label}",
        "why": row["why"],
    }
    if row["safe"]:
        del lines["obeyed"]  # the same
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items()) + "\n"


def _weights(options: argparse.Namespace) -> None:
    from tunescope.compare.weights import compare_weights

    print(compare_weights(options.base, options.tuned, options.out, exact=options.svd, device=options.device))


def _compare(options: argparse.Namespace) -> None:
    if options.new_tokens < 1:
        raise InputError(f"--new-tokens: {options.new_tokens} must be at least 1")

    from tunescope.compare.how import How
    from tunescope.compare.models import compare_models

    how = How(
        prompts=tuple(options.prompts),
        base_format=options.base_format,
        tuned_format=options.tuned_format,
        device=options.device,
        dtype=options.dtype,
        memory=tuple(options.memory),
        openings=options.openings,
        new_tokens=options.new_tokens,
        seed=options.seed,
    )
    print(compare_models(options.base, options.tuned, options.out, how))


def _report(options: argparse.Namespace) -> None:
    several = len(options.folders) > 1
    if several != (options.out is not None):
        raise InputError("--out: says where the report on several run folders goes; give both, or one folder alone")

    from tunescope.report.html import render
    from tunescope.report.together import gather

    if several:
        gather(options.folders, options.out)
    print(render(options.out if several else options.folders[0]))


def _explain(error: InputError | OSError) -> str:
    if isinstance(error, InputError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing is damaged: mend this and run the same command again"


if __name__ == "__main__":
    sys.exit(main())
