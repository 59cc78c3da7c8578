"""The command line: parses, calls the library, and turns errors into one message."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import shtab

from tunescope import __version__
from tunescope.config import GROUPS, TASK_CONFIGS, Checkpoint, ComputeConfig, Config, LanguageConfig, Study, TaskConfig
from tunescope.errors import InputError, choices, shown
from tunescope.recipes import RECIPES
from tunescope.registry import Registry, load_plugins, plugins_blamed
from tunescope.settings import described, override, read_study

LISTED = ("recipes", "tasks", "protocols", "attacks", "probes", "interventions", "claims", "figures", "architectures")

INCOMPLETE, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 where runs of a sweep failed, 2 for bad input, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
        load_plugins(getattr(options, "plugin", ()))
        with plugins_blamed("tunescope"):
            return options.command(options) or 0
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
        prog="tunescope",
        description="What does safety fine-tuning change inside a language model?",
        epilog="Exit status: 0 done; 1 some runs of a sweep failed; 2 bad input; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"tunescope {__version__}")
    shtab.add_argument_to(parser, help="print what makes a shell complete commands and options")
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
    _add_stages(study)
    study.set_defaults(command=_study)

    sweep = commands.add_parser(
        "sweep",
        help="one study at the points of a grid",
        description="Run a study at every point of a grid, several runs at each, and report each claim against each "
        "setting; the report is at DIR/report.html. The same command goes on after an interruption.",
    )
    sweep.add_argument("spec", type=Path, metavar="SPEC.yaml", help="what is swept (docs/cluster.md)")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: runs/NAME)")
    _add_plugin(sweep)
    _add_where(sweep)
    sweep.set_defaults(command=_sweep)

    sample = commands.add_parser("sample", help="print prompts of a task", description="Print prompts of a task.")
    _add_recipe(sample)
    sample.add_argument("--seed", type=int, metavar="N", help="which prompts (default: 0)")
    sample.add_argument("--kind", default="safe", metavar="KIND", help="kind of prompts (default: safe)")
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
        help="the study of any two models: a base and its fine-tune",
        description="What two models do, what differs inside them, and which claims hold; the report is at "
        "DIR/report.html. The same command goes on after an interruption. Two models of one study bring its task; "
        "others read instructions in English.",
    )
    _add_pair(compare)
    compare.add_argument(
        "--prompts", nargs="+", default=[], metavar="[KIND=]FILE", help=f"{_help(LanguageConfig, 'prompts')}"
    )
    for name in ("base", "tuned"):
        compare.add_argument(
            f"--{name}-format", choices=("auto", "chat", "plain"), default="auto", help=_help(Checkpoint, "format")
        )
    compare.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help=_help(Checkpoint, "dtype"),
    )
    compare.add_argument("--memory", nargs="+", default=[], metavar="PLACE=SIZE", help=_help(Checkpoint, "memory"))
    compare.add_argument("--openings", metavar="FILE", help=_help(LanguageConfig, "openings"))
    compare.add_argument("--new-tokens", type=int, metavar="N", help=_help(LanguageConfig, "new_tokens"))
    compare.add_argument(
        "--add",
        nargs="+",
        default=[],
        metavar="TUNE",
        help="further fine-tunes: PROTOCOL-RATE trains one of the base; benign-default is the control of most claims",
    )
    compare.add_argument("--seed", type=int, default=0, metavar="N", help="of training and of random controls")
    _add_set(compare)
    _add_stages(compare)
    compare.set_defaults(command=_compare)

    gguf = commands.add_parser(
        "import",
        help="an ordinary model folder from a GGUF file",
        description="Write the model of a GGUF file, in float32, with its tokenizer as a folder that any command reads "
        "(needs the extra gguf).",
    )
    gguf.add_argument("file", type=Path, metavar="FILE.gguf", help="the model")
    gguf.add_argument("folder", type=Path, metavar="DIR", help="where it goes; must not be there yet")
    gguf.set_defaults(command=_import)

    listed = commands.add_parser(
        "list",
        help=f"what there is: {', '.join(LISTED)}, settings",
        description="What a study can be made of, plug-ins among it.",
    )
    every = (*LISTED, "settings")
    listed.add_argument("what", nargs="?", choices=every, metavar="WHAT", help=f"one of {', '.join(every)}")
    _add_plugin(listed)
    listed.set_defaults(command=_list)

    report = commands.add_parser(
        "report",
        help="judge and draw again",
        description="Verdicts, figures and report again, from the records of a run, or of several seeds together.",
    )
    report.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="a run folder; several: seeds of one study"
    )
    report.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: into the one folder)")
    _add_plugin(report)
    report.set_defaults(command=_report)

    explore = commands.add_parser(
        "explore",
        help="ask the models of a run, and change them, on a page",
        description="A page, on this machine alone, on the live models of a run: choose a prompt or type one, see "
        "what every model answers, its odds of refusal, tau, and the action of dW by layer and token; turn alpha, "
        "remove the direction, patch a layer from the prompt's twin (needs the extra explore).",
    )
    explore.add_argument("run", type=Path, metavar="RUN", help="a run folder, with its models")
    explore.add_argument("--port", type=_port, metavar="N", help="of the page (default: the first free one from 7860)")
    explore.add_argument("--device", help="in the place of the run's compute.device: auto, cpu, cuda, cuda:1")
    explore.add_argument("--no-browser", action="store_true", help="only print the address")
    _add_plugin(explore)
    explore.set_defaults(command=_explore)

    push = commands.add_parser(
        "push",
        help="a run and its models to the Hugging Face hub",
        description="Upload the tables and the page of a run as a dataset, and its models, each with a card. All of "
        "config.yaml and environment.json go there, paths and versions of this machine among it: look with --dry-run.",
    )
    push.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    push.add_argument("--to", required=True, metavar="OWNER/NAME", help="the dataset; a model is NAME-MODEL")
    push.add_argument("--models", nargs="*", metavar="MODEL", help="only these models; none after it: no model")
    push.add_argument(
        "--license", default="", metavar="ID", help="of the cards, as apache-2.0 (default: none is named)"
    )
    push.add_argument("--private", action="store_true", help="make private repositories")
    push.add_argument("--dry-run", type=Path, metavar="DIR", help="write it all to a folder, and send nothing")
    _add_plugin(push)
    push.set_defaults(command=_push)
    return parser


def _help(settings: type[Any], name: str) -> str:
    """What the settings say of one of them, and its default."""
    field = settings.model_fields[name]
    default = f" (default: {field.default})" if isinstance(field.default, str | int) else ""
    return f"{field.description}{default}".replace("%", "%%")


def _add_pair(command: argparse.ArgumentParser) -> None:
    for name, what in (("base", "the model before"), ("tuned", "and after fine-tuning, or a LoRA adapter")):
        command.add_argument(name, metavar=name.upper(), help=f"{what}: a folder, or a hub's owner/name[@revision]")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    command.add_argument("--device", default="auto", help=_help(ComputeConfig, "device"))


def _add_recipe(command: argparse.ArgumentParser) -> None:
    recipes = " ".join(f"{name}: {(RECIPES[name].__doc__ or '').splitlines()[0]}" for name in RECIPES)
    command.add_argument("recipe", metavar="RECIPE", help=f"a YAML file of a study, or a recipe. {recipes}")
    _add_set(command)


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change settings, e.g. tune.steps=300 base.architecture=llama 'tunes=[dpo-eta_m, benign-eta_m-lora]' "
        "(PROTOCOL-RATE, a rate of tune.learning_rates)",
    )
    _add_plugin(command)


def _add_plugin(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--plugin",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="Python files that register protocols, attacks, probes, claims, tasks and so on (docs/extending.md)",
    )


def _jobs(text: str) -> int | None:
    """None: as many as fit."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a number, or auto") from error


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a number from 1 to 65535")
    return int(text)


def _add_where(command: argparse.ArgumentParser) -> None:
    command.add_argument("--update", action="store_true", help="bring a folder with other settings up to these")
    command.add_argument(
        "--jobs",
        type=_jobs,
        default="1",
        metavar="N",
        help="stages at a time, each in a process of its own on one core; auto: one per core (default: 1, which uses "
        "all cores for one stage)",
    )
    command.add_argument(
        "--on",
        default="",
        metavar="ray[:ADDRESS]",
        help="run stages on a Ray cluster: the one at this address or at hand, or one that is started here (needs the "
        "extra ray; docs/cluster.md)",
    )
    command.add_argument(
        "--store",
        default="",
        metavar="URI",
        help="with --on: where nodes that share no disk keep the files of runs, e.g. s3://bucket/path",
    )
    command.add_argument(
        "--log",
        default="",
        metavar="TRACKER",
        help="tell learning curves and behaviour to tensorboard (DIR/logs), wandb or mlflow, as stages are done",
    )


def _add_stages(command: argparse.ArgumentParser) -> None:
    _add_where(command)
    which = command.add_mutually_exclusive_group()
    looks = ", ".join(GROUPS)
    which.add_argument("--skip", nargs="+", metavar="STAGE", help=f"do not run some of {looks}")
    which.add_argument(
        "--only", nargs="+", metavar="STAGE", help="measure with these stages alone; models are always made"
    )


def _skipped(options: argparse.Namespace, default: tuple[str, ...] = ()) -> list[str]:
    for option, named in (("--only", options.only or []), ("--skip", options.skip or [])):
        if unknown := sorted(set(named) - {*GROUPS}):
            raise InputError(f"{option}: unknown stage {shown(unknown[0])}. {choices(unknown[0], GROUPS)}")
    if options.only:
        return [name for name in GROUPS if name not in options.only]
    return list(default) if options.skip is None else options.skip


def _resolve(options: argparse.Namespace) -> Study:
    if options.recipe.endswith((".yaml", ".yml")):
        return override(read_study(Path(options.recipe)), options.set)
    return override(RECIPES[options.recipe](), options.set)


def _study(options: argparse.Namespace) -> None:
    study = _resolve(options)
    seeds = list(dict.fromkeys(options.seed or [study.seed]))
    studies = [study.changed(seed=seed) for seed in seeds]
    several = len(seeds) > 1
    folder = options.out or Path("runs") / (study.name if several else f"{study.name}-seed{seeds[0]}")
    skip = _skipped(options)

    from tunescope.study import pipeline  # torch and transformers take seconds to import: only when they are needed

    if several:
        print(pipeline.run_seeds(studies, folder, update=options.update, skip=skip, where=_where(options)))
    else:
        print(pipeline.run(studies[0], folder, update=options.update, skip=skip, where=_where(options)))


def _sweep(options: argparse.Namespace) -> int:
    from tunescope.study.sweeps import read_spec, run_sweep

    spec = read_spec(options.spec)
    folder = options.out or Path("runs") / spec.name
    swept = run_sweep(spec, folder, update=options.update, where=_where(options), beside=options.spec.parent)
    print(swept.report)
    for run, why in swept.failures.items():
        print(f"tunescope: {run} is missing: {why}; the same command tries again", file=sys.stderr)
    return INCOMPLETE if swept.failures else 0


def _where(options: argparse.Namespace) -> Any:
    from tunescope.study.executors import Where

    return Where(options.jobs, options.on, options.store, options.log)


def _compare(options: argparse.Namespace) -> None:
    from tunescope.api import comparison_of, run

    language = {
        "prompts": options.prompts or None,
        "openings": options.openings,
        "new_tokens": options.new_tokens,
    }
    asked = {key: value for key, value in language.items() if value is not None}
    study = comparison_of(options.base, options.tuned, language=bool(asked))
    (given,) = study.tunes
    tuned = given.model_dump(mode="json") | {"format": options.tuned_format}
    study = study.changed(
        seed=options.seed,
        task=asked,
        base={"format": options.base_format, "dtype": options.dtype, "memory": options.memory},
        tunes=[tuned, *options.add],
        compute={"device": options.device},
    )
    # Attacks search with gradients, which takes long on large models.
    skip = _skipped(options, ("attack",))
    where = {"jobs": options.jobs, "on": options.on, "store": options.store, "log": options.log}
    found = run(override(study, options.set), options.out, update=options.update, skip=skip, **where)
    print(found.report)


def _sample(options: argparse.Namespace) -> None:
    study = _resolve(options)
    if options.seed is not None:
        study = study.changed(seed=options.seed)
    if options.n < 1:
        raise InputError(f"-n: {options.n} must be at least 1")

    from tunescope.study.sample import prompts_of

    for row in prompts_of(study, options.kind, options.n, options.strength):
        print(json.dumps(row, ensure_ascii=False) if options.json else _readable(row))


def _readable(row: dict[str, Any]) -> str:
    label = "safe: answer" if row["safe"] else "unsafe: refuse"
    strength = f" (strength {row['strength']:g})" if row.get("strength") else ""
    lines = {
        "prompt": row["prompt"],
        "operators": ", ".join(f"op{op}" for op in row.get("operators", [])),
        "operand": row.get("operand", ""),
        "wanted": row["wanted"],
        "obeyed": "" if row["safe"] else row["answer"],
        "label": f"{row['kind']}{strength}, {label}",
        "why": row.get("why", ""),
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items() if text) + "\n"


def _weights(options: argparse.Namespace) -> None:
    from tunescope.study.weights import compare_weights

    print(compare_weights(options.base, options.tuned, options.out, exact=options.svd, device=options.device))


def _import(options: argparse.Namespace) -> None:
    from tunescope.models.gguf import import_gguf

    print(import_gguf(options.file, options.folder))


def _report(options: argparse.Namespace) -> None:
    if len(options.folders) > 1 and not options.out:
        raise InputError("--out: say where the report on several run folders goes")

    from tunescope.report.html import render
    from tunescope.report.together import gather

    if options.out:
        gather(options.folders, options.out)
    print(render(options.out or options.folders[0]))


def _explore(options: argparse.Namespace) -> None:
    from tunescope.explore.page import serve

    serve(options.run, port=options.port, device=options.device, browser=not options.no_browser)


def _push(options: argparse.Namespace) -> None:
    from tunescope.study.push import lay_out, repositories, send

    parts = repositories(options.run, options.to, options.models, options.license)
    if options.dry_run:
        print(lay_out(parts, options.dry_run))
    else:
        print("\n".join(send(parts, private=options.private)))


def _list(options: argparse.Namespace) -> None:
    from tunescope.attacks.base import ATTACKS
    from tunescope.evidence.claims import CLAIMS
    from tunescope.interventions.base import INTERVENTIONS
    from tunescope.models.families import FAMILIES
    from tunescope.probes.view import PROBES
    from tunescope.report.figures import FIGURES
    from tunescope.study import graph  # noqa: F401  # which brings in all that comes with tunescope
    from tunescope.tasks.base import TASKS
    from tunescope.training.protocol import PROTOCOLS

    of_models = (TASKS, PROTOCOLS, ATTACKS, PROBES, INTERVENTIONS, CLAIMS, FIGURES, FAMILIES)
    entries: tuple[Registry[Any], ...] = (RECIPES, *of_models)
    said = {"claims": lambda name: CLAIMS[name].statement, "figures": lambda name: FIGURES[name].title}
    if options.what == "settings":
        print("\n".join(_settings()))
        return
    for what, registry in zip(LISTED, entries, strict=True):
        if options.what not in (None, what):
            continue
        print(what)
        width = max(map(len, registry))
        for name in registry:
            print(f"  {name:<{width}}  {said.get(what, registry.about)(name)}".rstrip())
        print()


def _settings() -> Iterator[str]:
    """Every setting, by section; docs/settings.md."""
    from tunescope.attacks.base import ATTACKS
    from tunescope.interventions.base import INTERVENTIONS
    from tunescope.training.protocol import PROTOCOLS

    yield "# Settings"
    yield "\nAs keys of `--set` and of YAML files, with their defaults; recipes have values of their own. Made by"
    yield "`tunescope list settings`.\n"
    yield from (line for line in described("", Study) if "." not in line.partition("=")[0])
    for section, field in Study.model_fields.items():
        for settings in _kinds(field.annotation):
            kind = settings.model_fields.get("type")
            entry = ", an entry" if section == "tunes" else ""
            yield f"\n## {section}{entry}" + (f" (type: {kind.default})" if kind else "") + "\n"
            yield from described(section, settings)
    for section, registry in (("tune", PROTOCOLS), ("attack", ATTACKS), ("intervene", INTERVENTIONS)):
        yield f"\n## {section}.settings\n"
        for name in registry:
            yield from described(f"{section}.settings.{name}", registry[name].settings)


def _kinds(annotation: Any) -> Iterator[type[Config]]:
    """The classes of settings that a field may be."""
    if annotation is TaskConfig:
        yield from TASK_CONFIGS.values()
    elif isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _explain(error: InputError | OSError) -> str:
    if isinstance(error, InputError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing is damaged: mend this and run the same command again"


if __name__ == "__main__":
    sys.exit(main())
