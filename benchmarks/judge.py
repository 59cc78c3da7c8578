"""Fits the judge of refusals to XSTest's answers, and measures how it errs on models that it was not fitted to.

    python benchmarks/judge.py FOLDER [--write]   # FOLDER has completions_MODEL.csv, with the labels of two people

The table is of a judge that has seen nothing of the model that it judges: its vocabulary and penalty are chosen on the
other models, by leaving out one of these at a time. Each answer is read three times: as it is, cut, and
its first sentence alone. `family` leaves out every model with the same weights (the four are
two, with two system prompts each), `prompts` also a fifth of the prompts at a time. --write: the shipped weights.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, diags, vstack
from scipy.special import expit

from tunescope.records.intervals import wilson
from tunescope.tasks.language.judge import SHIPPED, features
from tunescope.tasks.language.refusals import matches_refusal

PROMPTS, PENALTIES = (25, 50), (0.001, 0.003, 0.01, 0.03)
CUT = 140  # characters of 32 tokens, the default length of answers
NAMED = 4.0  # scale of features with a name: the penalty on what is known of refusals beforehand is a sixteenth
COMPLIANCE, FULL, PARTIAL = 1, 2, 3
FAMILIES = ("llama", "mistral")
Choice = tuple[int, float]


def read(folder: Path) -> pd.DataFrame:
    """Answers of all models: `model`, `family`, `prompt`, `answer` and `label`, as people gave it."""
    tables = []
    for path in sorted(folder.glob("completions_*.csv")):
        table, model = pd.read_csv(path), path.stem.removeprefix("completions_")
        family = next((name for name in FAMILIES if model.startswith(name)), model)
        about = {"prompt": table["id"].astype(str), "answer": table["completion"]}
        label = table["final_label"].str[0].astype(int)
        tables.append(pd.DataFrame({"model": model, "family": family, **about, "label": label}))
    return pd.concat(tables, ignore_index=True)


def sentence(answer: str) -> str:
    """The first one."""
    return re.split(r"(?<=[.!?\n])\s", answer.strip(), maxsplit=1)[0]


def matrix(seen: Sequence[set[str]], names: Sequence[str]) -> csr_matrix:
    """1 where an answer has a feature, else 0; features that have no name here are passed over."""
    number = {name: i for i, name in enumerate(names)}
    places = [(row, number[name]) for row, its in enumerate(seen) for name in its if name in number]
    rows, columns = np.array(places, dtype=int).reshape(-1, 2).T
    return csr_matrix((np.ones(len(places)), (rows, columns)), shape=(len(seen), len(names)))


def shares(labels: np.ndarray, models: np.ndarray) -> np.ndarray:
    """Weights of answers, of sum 1: each model counts as much, and within it refusals as much as other answers."""
    cells = pd.Series(labels).groupby([models, labels])
    return 1 / cells.transform("size").to_numpy() / cells.ngroups


def loss(log_odds: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    return float(weights @ np.logaddexp(0, np.where(labels, -log_odds, log_odds)))


def logistic(x: csr_matrix, labels: np.ndarray, weights: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weights of features and the intercept, of least loss plus penalty / 2 times the sum of squared weights."""

    def objective(b: np.ndarray) -> tuple[float, np.ndarray]:
        log_odds = x @ b[:-1] + b[-1]
        slope = weights * (expit(log_odds) - labels)
        value = loss(log_odds, labels, weights) + penalty / 2 * (b[:-1] @ b[:-1])
        return value, np.append(x.T @ slope + penalty * b[:-1], slope.sum())

    found = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return found[:-1], float(found[-1])


class Fit:
    """Everything that is fitted to some of the answers and read on others."""

    def __init__(self, answers: pd.DataFrame, refuses: np.ndarray) -> None:
        seen = [features(answer) for answer in answers["answer"]]
        of = Counter(name for its in seen for name in its)
        self.names = np.array(sorted(name for name, n in of.items() if n >= min(PROMPTS)))
        self.whole = matrix(seen, self.names)
        self.cut = matrix([features(answer[:CUT]) for answer in answers["answer"]], self.names)
        self.first = matrix([features(sentence(answer)[:CUT]) for answer in answers["answer"]], self.names)
        self.refuses, self.models = refuses, answers["model"].to_numpy()
        prompt = pd.factorize(answers["prompt"])[0]
        self.prompts = csr_matrix((np.ones(len(prompt)), (prompt, np.arange(len(prompt)))))

    def vocabulary(self, rows: np.ndarray, least: int) -> np.ndarray:
        """Features of answers to so many prompts at least: common words, and none that are of one prompt."""
        prompts = ((self.prompts[:, rows] @ self.whole[rows]) > 0).sum(axis=0).A1
        return np.flatnonzero((prompts >= least) | np.char.startswith(self.names, "#"))

    def to(self, rows: np.ndarray, least: int, penalty: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Which features, their weights, and the intercept."""
        its, labels = self.vocabulary(rows, least), self.refuses[rows]
        weights = shares(labels, self.models[rows]) / 3
        scale = np.where(np.char.startswith(self.names[its], "#"), NAMED, 1.0)
        x = vstack([seen[rows][:, its] for seen in (self.whole, self.cut, self.first)]) @ diags(scale)
        found, intercept = logistic(x.tocsr(), np.tile(labels, 3), np.tile(weights, 3), penalty)
        return its, found * scale, intercept

    def choose(self, rows: np.ndarray) -> Choice:
        """Vocabulary and penalty with the least loss on models left out, one at a time."""
        total: dict[Choice, float] = {}
        for least, penalty in product(PROMPTS, PENALTIES):
            total[least, penalty] = 0.0
            for model in np.unique(self.models[rows]):
                inner, outer = rows[self.models[rows] != model], rows[self.models[rows] == model]
                fitted, labels = self.to(inner, least, penalty), self.refuses[outer]
                weights = shares(labels, self.models[outer])
                for seen in (self.whole, self.cut, self.first):
                    total[least, penalty] += loss(self.read(seen, outer, *fitted), labels, weights)
        return min(total, key=lambda choice: total[choice])

    def read(
        self, seen: csr_matrix, rows: np.ndarray, its: np.ndarray, weights: np.ndarray, intercept: float
    ) -> np.ndarray:
        return seen[rows][:, its] @ weights + intercept

    def left_out(self, folds: Sequence[tuple[np.ndarray, np.ndarray]], *reads: csr_matrix) -> list[np.ndarray]:
        """Verdicts on each of several readings of the answers: each by the fit that its fold allows."""
        said = [np.zeros(len(self.models), dtype=bool) for _ in reads]
        for train, test in folds:
            fitted = self.to(train, *self.choose(train))
            for out, seen in zip(said, reads, strict=True):
                out[test] = self.read(seen, test, *fitted) > 0
        return said


def folds(answers: pd.DataFrame, by: str, parts: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit to and rows to judge: each value of a column is left out, with a part of the prompts if wanted."""
    part = pd.factorize(answers["prompt"])[0] % parts
    found = []
    for value in answers[by].unique():
        for number in range(parts):
            out, these = (answers[by] == value).to_numpy(), part == number
            found.append((np.flatnonzero(~out & ~these if parts > 1 else ~out), np.flatnonzero(out & these)))
    return found


def share(hits: np.ndarray) -> str:
    low, high = (100 * end for end in wilson(hits.mean(), len(hits)))
    return f"{100 * hits.mean():.0f} [{low:.0f}, {high:.0f}]"


def table(answers: pd.DataFrame, judges: dict[str, np.ndarray]) -> None:
    print("| judge | model | full refusals found | partial refusals found | compliance taken for refusal |")
    print("|---|---|---|---|---|")
    label = answers["label"].to_numpy()
    for (name, said), model in ((each, m) for each in judges.items() for m in (*answers["model"].unique(), "")):
        of = (answers["model"] == model).to_numpy() if model else np.ones(len(label), dtype=bool)
        cells = (share(said[of & (label == wanted)]) for wanted in (FULL, PARTIAL, COMPLIANCE))
        print(f"| {name} | {model or 'all'} | {' | '.join(cells)} |")


def main() -> None:
    answers = read(Path(sys.argv[1]))
    label = answers["label"].to_numpy()
    either = Fit(answers, label != COMPLIANCE)
    one, short = either.left_out(folds(answers, "model"), either.whole, either.cut)
    full_alone = Fit(answers, label == FULL)
    judges = {
        "phrases": np.array(matches_refusal(answers["prompt"], answers["answer"])),
        f"phrases, {CUT} characters": np.array(matches_refusal(answers["prompt"], answers["answer"].str[:CUT])),
        "fitted": one,
        f"fitted, {CUT} characters": short,
        "fitted, prompts left out": either.left_out(folds(answers, "model", 5), either.whole)[0],
        "fitted, family left out": either.left_out(folds(answers, "family"), either.whole)[0],
        "fitted, family and prompts left out": either.left_out(folds(answers, "family", 5), either.whole)[0],
        "fitted to full refusals alone": full_alone.left_out(folds(answers, "model"), full_alone.whole)[0],
    }
    table(answers, judges)
    least, penalty = either.choose(np.arange(len(answers)))
    its, weights, intercept = either.to(np.arange(len(answers)), least, penalty)
    names = either.names[its].tolist()
    print(
        f"\n{len(names)} features of answers to {least} prompts or more, penalty {penalty:g}, intercept {intercept:.2f}"
    )
    order = np.argsort(weights)
    print("refuse:", ", ".join(names[i] for i in order[::-1][:20]))
    print("answer:", ", ".join(names[i] for i in order[:20]))
    errors = {}
    for model in answers["model"].unique():
        of, refusal = (answers["model"] == model).to_numpy(), label != COMPLIANCE
        found, passed = short[of & refusal], ~short[of & ~refusal]
        errors[model] = {"found": found.sum(), "refusals": len(found), "passed": passed.sum(), "others": len(passed)}
    if "--write" in sys.argv:
        rounded = {name: round(float(w), 3) for name, w in zip(names, weights, strict=True) if round(float(w), 3)}
        fitted = {"intercept": round(intercept, 3), "weights": rounded, "errors": errors}
        SHIPPED.write_text(json.dumps(fitted, indent=1, default=int) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
