"""The judge that is fitted to answers which people judged: how it is fitted, what it reads, how it errs."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tunescope.errors import InputError
from tunescope.tasks.language.judge import SHIPPED, FittedJudge, features, read_judge
from tunescope.tasks.language.prompts import read_prompts

ROOT = Path(__file__).parents[3]
ERRORS = {name: {"found": 9, "refusals": 10, "passed": 4, "others": 5} for name in ("one", "two")}
PLANTED = {"intercept": -1.0, "weights": {"alas": 2.0, "sure": -2.0}, "errors": ERRORS}


def judge_of(content: object, folder: Path) -> FittedJudge:
    (folder / "judge.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_judge(folder / "judge.json")


def test_weights_add_up(tmp_path: Path) -> None:
    judge = judge_of(PLANTED, tmp_path)
    answers = ["Alas!", "Alas, sure.", "sure", "", 200 * "x" + " alas"]
    assert [judge.log_odds(answer) for answer in answers] == [1, -1, -3, -1, -1]
    assert judge(answers, answers) == [True, False, False, False, False]
    assert (judge.errors.found, judge.errors.passed) == ([(9, 10)] * 2, [(4, 5)] * 2)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "no weights of a judge"),
        (PLANTED | {"weights": {}}, "weights"),
        (PLANTED | {"weights": {"alas": "much"}}, "weights.alas"),
        (PLANTED | {"weights": {"alas": float("nan")}}, "weights.alas"),
        (PLANTED | {"errors": {"one": ERRORS["one"]}}, "errors"),
        (
            PLANTED | {"errors": ERRORS | {"two": ERRORS["two"] | {"found": 11}}},
            "errors.two: more found than there are",
        ),
        (PLANTED | {"intercep": 0}, "intercep"),
        (
            PLANTED | {"errors": {name: ERRORS["one"] | {"found": 1, "passed": 1} for name in "ab"}},
            "no better than chance",
        ),
    ],
)
def test_damaged_weights(content: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        judge_of(content, tmp_path)


def test_features_by_hand() -> None:
    assert features("Sure. I\N{RIGHT SINGLE QUOTATION MARK}m not able to") == {
        "sure", "i'm", "not", "able", "to", "i'm not", "not able", "able to",
        "#phrase", "#I decline", "#opening of an answer",
    }  # fmt: skip
    assert features("I can't. I won't.") >= {"#phrase in the first sentence", "#phrases in two sentences"}
    assert features(" \n ") == set()


def test_the_shipped_weights_are_of_words_and_pairs() -> None:
    """No text of the answers is in them."""
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert all(len(name.split()) <= 2 or name.startswith("#") for name in shipped["weights"])
    assert len(shipped["errors"]) == 4


def test_a_planted_way_to_refuse_is_found_in_a_model_left_out() -> None:
    fitting = runpy.run_path(str(ROOT / "benchmarks/judge.py"))
    rng = np.random.default_rng(0)
    rows = [
        {"model": model, "prompt": str(i), "label": 1 + i % 2, "answer": ["nay ", "yea "][(i + 1) % 2 - 1] + filler}
        for model in ("a", "b", "c")
        for i in range(80)
        for filler in [" ".join(rng.choice(["moss", "fern", "reed"], 4))]
    ]
    answers = pd.DataFrame(rows)
    refuses = answers["label"].to_numpy() != 1
    fit = fitting["Fit"](answers, refuses)
    (said,) = fit.left_out(fitting["folds"](answers, "model"), fit.whole)
    assert (said == refuses).all()
    noise = fitting["Fit"](answers, rng.permutation(refuses))
    (said,) = noise.left_out(fitting["folds"](answers, "model"), noise.whole)
    assert abs((said == noise.refuses).mean() - 0.5) < 0.15


def test_the_shipped_judge_on_answers_written_for_this_purpose(judged_so: Callable) -> None:
    """See docs/real-models.md; the hard ones are as those of the matcher."""
    assert judged_so(read_judge()) == {
        (False, True, True): 41,
        (False, True, False): 1,
        (False, False, False): 42,
        (True, True, False): 18,
        (True, False, True): 6,
        (True, False, False): 12,
    }


@pytest.mark.parametrize(
    "answer", ["", " \n", "0 0 0 0", "the the the", "No", "is is not not not", "w1 w2 no w3", "I I I I"]
)
def test_nothing_and_one_word_over_and_over_do_not_refuse(answer: str) -> None:
    assert read_judge()([""], [answer]) == [False]


def test_instructions_are_no_refusals() -> None:
    """Of text that refuses nothing, and is full of harmful words."""
    prompts = [each.prompt for each in read_prompts(["shipped:instructions"])]
    assert not any(read_judge()(prompts, prompts))
