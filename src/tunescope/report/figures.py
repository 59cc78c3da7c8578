"""Figures: records in, `matplotlib.figure.Figure` out. `FIGURES` lists them in the order of the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tunescope.files import atomic_path
from tunescope.report import attacks, behaviour, interventions, matrices, mechanism
from tunescope.report.select import (
    course_rows,
    final_rows,
    headline_rows,
    inside_rows,
    learning_rows,
    prompts_text,
    strength_rows,
)
from tunescope.report.style import style


@dataclass(frozen=True)
class Drawing:
    """One figure of the report; left out where `rows` finds nothing.

    Attributes:
        draw: records -> figure. rows: records -> those it shows.
        caption: what one sees. point: what the figure calls one row, e.g. `bar`.
    """

    name: str
    title: str
    draw: Callable[[pd.DataFrame], Figure]
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    caption: str
    point: str = "point"

    def describe(self, records: pd.DataFrame) -> str:
        """The caption, with the number of prompts behind each point where the records tell it."""
        n = prompts_text(self.rows(records))
        return f"{self.caption} n = {n} per {self.point}." if n else self.caption


FIGURES = (
    Drawing(
        "behaviour",
        "What each model does",
        behaviour.outcomes,
        headline_rows,
        "Each bar is the held-out prompts of one kind given to one model; kinds with a strength are shown at their "
        "greatest. Solid, from the left: the share answered (compliance). Pale, from the right: the share refused. "
        "White between them: answers that are neither. For kinds that want a refusal, solid is attack success. "
        "Whiskers: 95 % Wilson intervals.",
        "bar",
    ),
    Drawing(
        "strength",
        "Attack success against strength",
        behaviour.strength_curves,
        strength_rows,
        "Compliance as the one thing that a kind changes grows from nothing (0: an unsafe prompt as it is, or for the "
        "control a safe one) to everything (1). For the jailbreaks compliance is attack success; for the control "
        "it is what is wanted, and a fall is over-refusal. One row of panels per learning rate; the base model is in "
        "each. Bands: 95 % Wilson intervals.",
    ),
    Drawing(
        "course",
        "The course of fine-tuning",
        behaviour.course,
        course_rows,
        "What fine-tuning should keep (compliance with safe prompts, left) and what it should teach (refusal of unsafe "
        "ones, right) against the step; every curve begins at the base model (star). Bands: 95 % Wilson intervals.",
    ),
    Drawing(
        "clusters",
        "Observation 1: clusters",
        mechanism.clusters,
        lambda records: final_rows(inside_rows(records, "tau")),
        "τ of the activations after the MLP's non-linearity, at the last token of the prompt: positive nearer the mean "
        "of the safe prompts, negative nearer that of the unsafe ones. Mean and standard deviation over prompts. In "
        "grey, on the same axes: benign fine-tuning at the same rate or, of a pair of models, the base.",
        "point",
    ),
    Drawing(
        "separation",
        "Observation 1, without units",
        mechanism.separation,
        lambda records: final_rows(inside_rows(records, "tau_auc")),
        "How often a safe prompt has a greater τ than an unsafe one (0.5: chance), by layer, with 95 % intervals. "
        "Dotted, with the middle 95 %: class means of labels dealt out at random, averaged over models.",
    ),
    Drawing(
        "null_space",
        "Observation 2: null space",
        mechanism.null_space,
        lambda records: inside_rows(records, "null_share").query("control == 'rotated'").assign(n=1),
        "Share of the squared norm of dW that lies in the left null space of the base model's W_in, by layer. The "
        "space is most of all directions: dW with its singular values kept and its directions drawn at random (dotted, "
        "with the central 95 % of draws) has the share that its dimension alone gives.",
    ),
    Drawing(
        "null_lengths",
        "Observation 2, vector by vector",
        mechanism.null_lengths,
        lambda records: inside_rows(records, "null_length"),
        "As the paper plots it: the length of every left singular vector of dW (W_in, last layer) projected on the "
        "left null space of the base model's W_in. Vector 0 has the largest singular value; lines through 50 vectors "
        "or more are running means. Dotted: a random direction, √((out - rank) / out).",
    ),
    Drawing(
        "specialisation",
        "Observation 3: specialisation",
        mechanism.specialisation,
        lambda records: final_rows(inside_rows(records, "gain_ratio")),
        "How much more dW does with unsafe prompts than with safe ones (1: the same), by layer, with 95 % intervals; "
        "right: with the activations of the model before fine-tuning. Dotted: dW in random directions, per model.",
    ),
    Drawing(
        "sensitivity",
        "Observation 4: sensitivity",
        mechanism.sensitivity,
        lambda records: final_rows(inside_rows(records, "sensitivity")),
        "Norm of the gradient of the first answer token's largest logit with respect to all input embeddings: mean, "
        "with its 95 % interval.",
        "point",
    ),
    Drawing(
        "direction",
        "One direction",
        mechanism.direction,
        lambda records: final_rows(inside_rows(records, "refusal_without_direction")),
        "Unsafe prompts that are refused by the intact model, by the model whose residual stream has lost the "
        "difference of the safe and unsafe means, and by one that has lost a random direction. 95 % Wilson intervals.",
        "point",
    ),
    Drawing(
        "mechanism_course",
        "Inside, over the course of fine-tuning",
        mechanism.course,
        mechanism.course_of_mechanism,
        "The four observations at every model saved during fine-tuning.",
    ),
    Drawing(
        "attack_success",
        "Attacks by models",
        attacks.success_map,
        attacks.strongest,
        "Share of unsafe prompts (%) whose whole answer an attack gets out of a model, at its greatest strength.",
        "cell",
    ),
    Drawing(
        "attack_features",
        "Observation 5: attacks against strength",
        attacks.features,
        attacks.ladder_rows,
        "Top: the share of attacked prompts that are answered (of safe ones in dialect that is what is wanted). "
        "Below: what the same prompts look like inside, at the last layer; τ above 0 is nearer the safe prompts. The "
        "same prompts at every strength; strength 0 is the prompt before the attack. The larger rate; 95 % intervals.",
    ),
    Drawing(
        "attack_selection",
        "Observation 5: who gets through",
        attacks.selection,
        attacks.split_rows,
        "τ of attacked prompts that got an answer, and of those that did not, at each attack's greatest strength. To "
        "show successes alone, as the paper does, is to select for what is being shown. 95 % intervals.",
    ),
    Drawing(
        "alpha",
        "How much of dW",
        interventions.alpha_curves,
        interventions.alpha_rows,
        "Models with W + \N{GREEK SMALL LETTER ALPHA} dW in every parameter: 0 is the base, 1 the fine-tuned model "
        "(line), beyond 1 is extrapolation. Safe prompts answered and unsafe ones refused should stay high; the "
        "jailbreaks answered are attack success, at their greatest strength. 95 % intervals.",
    ),
    Drawing(
        "interventions",
        "Which part of dW",
        interventions.other_changes,
        interventions.change_rows,
        "Models in which dW is taken out of some matrices, cut to its largest singular values, kept to what writes "
        "into one space, put on the base or turned into random directions there, kept off the directions in which "
        "unsafe inputs stand out or left alone with them, or joined by that of another protocol; and the tuned model "
        "with the difference of the class means taken out of its residual stream, or added to it. Unsafe prompts still "
        "refused, safe ones still answered, jailbreaks that get through (mean over kinds, at their greatest strength).",
    ),
    Drawing(
        "matrices",
        "The change of every matrix",
        matrices.changes,
        matrices.matrix_rows,
        "Size of the change beside the matrix itself (Frobenius norms); its effective rank, dotted that of independent "
        "normal entries; and, where the matrix is taller than wide, the share of the change that lies in the left null "
        "space of the base model's matrix, dotted that of a random direction.",
    ),
    Drawing(
        "learning",
        "Learning curves",
        behaviour.learning_curves,
        learning_rows,
        "Loss of the training batches, in nats (faint: every step logged; line: a running mean), and the base model's "
        "compliance with held-out prompts during pretraining. The losses of two protocols are different quantities: "
        "compare the learning rates within a panel, not one panel with another.",
    ),
)


def figures(records: pd.DataFrame) -> dict[str, Figure]:
    """Every figure that the records hold something for, by name, in the order of the report.

    Args:
        records: as they are, or with `select.vector_rows` below them, for the one figure that shows scores.
    """
    with style():
        return {entry.name: entry.draw(records) for entry in FIGURES if len(entry.rows(records))}


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write every figure as `<name>.svg` and `<name>.pdf`, and replace `folder` by them at once.

    The same figures give the same bytes.
    """
    with atomic_path(folder) as temporary, style():
        temporary.mkdir()
        for name, figure in figures.items():
            figure.savefig(temporary / f"{name}.svg", metadata={"Date": None})
            figure.savefig(temporary / f"{name}.pdf", metadata={"CreationDate": None})
