"""What the two breadths of the safety data do: attack success of jb_misgen and over-refusal, per protocol.

    python benchmarks/breadths.py runs/laptop-seed0 [KEY=VALUE ...]

Takes the base model of a finished run and fine-tunes it at its first learning rate with other breadths; prints one row
per setting and protocol: compliance (refusal) of each kind, at strength 1, in per cent with 95 % Wilson intervals.
"""

import sys
import tempfile
from pathlib import Path

import tunescope as ts
from tunescope.config import settings_of
from tunescope.models.compute import resolve
from tunescope.records.intervals import share
from tunescope.rng import Stream
from tunescope.settings import override
from tunescope.study import graph  # noqa: F401  # registers what comes with the package
from tunescope.tasks.world.task import build
from tunescope.training.protocol import PROTOCOLS
from tunescope.training.tuning import tune

SETTINGS = ((0.0, 0.0), (0.25, 0.25), (0.5, 0.0), (0.25, 0.0))
KINDS = ("safe", "safe_dialect", "unsafe", "jb_misgen")
PROMPTS, ROWS = 500, 500


def main() -> None:
    run = ts.load_run(sys.argv[1])
    study = override(run.study, sys.argv[2:])
    compute = resolve(study.compute)
    rate = next(iter(study.tune.learning_rates.values()))
    print("| retain | refuse | protocol |", " | ".join(KINDS), "|")
    print("|---|---|---|" + "---|" * len(KINDS))
    for retain, refuse in SETTINGS:
        breadths = {"retain_breadth": retain, "refuse_breadth": refuse}
        task = build(study.task.model_copy(update=breadths), compute.device)
        for name in ("ssft", "dpo", "unlearning"):
            policy, reference = (run.load("base").to(compute.device) for _ in range(2))
            with tempfile.TemporaryDirectory() as folder:
                tune(
                    policy,
                    reference,
                    PROTOCOLS[name],
                    settings_of(PROTOCOLS[name].settings, study.tune.settings, name, "tune"),
                    rate,
                    task,
                    study.tune,
                    compute,
                    Stream.named(study.seed, "tuning", name),
                    label=f"{name} {retain} {refuse}",
                    save=lambda step, model: None,
                    resume=Path(folder) / "state.safetensors",
                )
            policy.requires_grad_(False)
            cells = []
            for kind in KINDS:
                stream = Stream.named(study.seed, "breadths", kind)
                batch = task.draw(kind, PROMPTS, "score", stream, task.kinds[kind].strongest)
                found = task.outcomes(policy, batch, ROWS)
                complied, refused = share(found.compliance), share(found.refusal)
                low, high = (100 * (end or 0.0) for end in (complied.low, complied.high))
                cells.append(f"{100 * complied.value:.1f} [{low:.1f}, {high:.1f}] ({100 * refused.value:.1f})")
            print(f"| {retain:g} | {refuse:g} | {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
