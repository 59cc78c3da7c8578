"""What the two breadths of the safety data do: attack success of jb_misgen and over-refusal, per protocol, at eta_m.

    python benchmarks/breadths.py runs/laptop-seed0

Takes the base model of a finished run and fine-tunes it with other breadths; prints one row per setting and protocol:
compliance (refusal) of each kind, at strength 1, in per cent with 95 % Wilson intervals.
"""

import sys
import tempfile
from pathlib import Path

from tunescope.config import Study
from tunescope.models.checkpoint import load_model
from tunescope.models.compute import resolve
from tunescope.probes.behaviour import Outcome, generate, outcomes, wilson
from tunescope.protocols.protocols import PROTOCOLS
from tunescope.protocols.tuning import tune
from tunescope.rng import Stream
from tunescope.world.kinds import Kind
from tunescope.world.prompts import sample_prompts
from tunescope.world.world import build_world

SETTINGS = ((0.0, 0.0), (0.25, 0.25), (0.5, 0.0), (0.25, 0.0))
KINDS = (Kind.SAFE, Kind.SAFE_DIALECT, Kind.UNSAFE, Kind.JB_MISGEN)
PROMPTS = 500


def main() -> None:
    run = Path(sys.argv[1])
    study = Study.from_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    compute = resolve(study.compute)
    print("| retain | refuse | protocol |", " | ".join(KINDS), "|")
    print("|---|---|---|" + "---|" * len(KINDS))
    for retain, refuse in SETTINGS:
        world = build_world(
            study.world.model_copy(update={"retain_breadth": retain, "refuse_breadth": refuse}), compute.device
        )
        for name in ("ssft", "dpo", "unlearning"):
            policy, reference = (
                load_model(run / "models/base", compute.device, compute.attention)[0] for _ in range(2)
            )
            with tempfile.TemporaryDirectory() as folder:
                tune(
                    policy,
                    reference,
                    PROTOCOLS[name],
                    study.tune.eta_m,
                    world,
                    study.tune,
                    compute,
                    Stream.named(study.seed, "tuning", name),
                    label=f"{name} {retain} {refuse}",
                    save=lambda step: None,
                    resume=Path(folder) / "state.safetensors",
                )
            cells = []
            for kind in KINDS:
                stream = Stream.named(study.seed, "breadths", str(kind))
                prompts = sample_prompts(world, kind, PROMPTS, stream, float(kind.has_strength))
                generated = generate(policy, prompts.prompt, world.answer_length, compute.dtype)
                judged = outcomes(generated, prompts.answer, prompts.refusal)
                complied, refused = (
                    wilson(int(judged[o].sum()), PROMPTS) for o in (Outcome.COMPLIANCE, Outcome.REFUSAL)
                )
                cells.append(
                    f"{complied.value:.1%} [{complied.low:.1%}, {complied.high:.1%}] ({refused.value:.1%})".replace(
                        "%", ""
                    )
                )
            print(f"| {retain:g} | {refuse:g} | {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
