"""Live models against what the study itself has written of them, and changes whose effect is known."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tunescope import cli
from tunescope.errors import InputError
from tunescope.explore import live
from tunescope.explore.live import RANDOM, Asked, Change, LiveModel, Patch, live_models
from tunescope.models.sites import Site

TUNED = "dpo-eta_m"


@pytest.fixture(scope="module")
def models(small_run: Path) -> dict[str, LiveModel]:
    return live_models(small_run)


def test_typed_prompts_look_as_in_the_examples_of_the_study(models, small_run):
    rows = json.loads((small_run / "examples.json").read_text())
    assert {row["kind"] for row in rows} == {*models["base"].task.kinds}
    for row in rows:
        assert {*row["answers"]} == {*models}
        for label, answer in row["answers"].items():
            seen = models[label].look(models[label].ask_text(row["prompt"]))
            assert (seen.answer, seen.outcome) == (answer["text"], answer["outcome"])
            assert seen.tau.tolist() == pytest.approx(answer["tau"], rel=2e-3, abs=1e-4)
            if label == "base":
                assert seen.gain is None
            else:
                assert seen.gain[:, -1].tolist() == pytest.approx(answer["gain"], rel=2e-3)
                assert seen.gain.shape == (1, len(seen.tokens))


def test_alpha_leads_from_the_base_to_the_fine_tune(models):
    base, tuned = (models[label].look(models[label].ask("unsafe", 1)) for label in ("base", TUNED))
    at = {alpha: models[TUNED].look(models[TUNED].ask("unsafe", 1), Change(alpha)) for alpha in (0.0, 0.5, 1.0)}
    assert at[0].answer == base.answer
    assert at[0].odds == pytest.approx(base.odds, abs=1e-6)
    assert at[1].odds == tuned.odds
    assert len({base.odds, tuned.odds, at[0.5].odds}) == 3
    assert models["base"].look(models["base"].ask("unsafe", 1), Change(0.5)).odds == base.odds


@pytest.mark.parametrize("source", ["twin", "other"])
@pytest.mark.parametrize("kind", ["safe", "unsafe"])
def test_what_follows_a_patch_is_the_other_prompts(models, source, kind):
    model = models[TUNED]
    twins = model.twins
    numbers = (twins.unsafe.prompts.sequence != twins.other.prompts.sequence).any(dim=1).nonzero()
    asked = model.ask(kind, int(numbers[0]))  # the other prompt of some is the same one: the world is small
    change = Change(patch=Patch(source, Site(model.layers - 1, "resid_post"), "last"))
    if (theirs := asked.twin if source == "twin" else asked.other) is None:
        with pytest.raises(InputError, match="this prompt has no other"):
            model.look(asked, change)
        return
    own, other = model.look(asked).odds, model.look(Asked(theirs)).odds
    assert own != pytest.approx(other, abs=1e-5)
    assert model.look(asked, change).odds == pytest.approx(other, abs=1e-6)
    assert model.look(asked).odds == own  # nothing stays behind


def test_a_direction_taken_out_is_the_models_own_or_a_random_one(models):
    model = models[TUNED]
    asked = model.ask("unsafe", 0)
    odds = {which: model.look(asked, Change(without=which)).odds for which in (None, 0, RANDOM)}
    assert len({*odds.values()}) == 3
    assert model.look(asked, Change(without=RANDOM)).odds == odds[RANDOM]
    with pytest.raises(InputError, match=r"after layer 7. Choose from: 0"):
        model.look(asked, Change(without=7))


def test_directions_and_classes_are_the_unchanged_models_whatever_was_asked_first(small_run):
    first, other = (live_models(small_run)[TUNED] for _ in range(2))
    first.look(first.ask("unsafe", 0), Change(alpha=-3, without=0))
    asked = other.ask("unsafe", 0)
    assert torch.equal(first.directions[0], other.directions[0])
    assert first.look(asked).tau.tolist() == other.look(asked).tau.tolist()


def test_models_are_looked_at_one_at_a_time(models):
    model = models[TUNED]
    asked, alphas = model.ask("unsafe", 0), [-1.0, 0.0, 0.5, 3.0]
    alone = [model.look(asked, Change(alpha)).odds for alpha in alphas]
    assert len({*alone}) == len(alphas)
    with ThreadPoolExecutor(4) as pool:
        together = [*pool.map(lambda alpha: model.look(asked, Change(alpha)).odds, alphas * 3)]
    assert together == alone * 3


def test_odds_of_a_sure_refusal_are_told_apart(models, monkeypatch):
    model = models["base"]
    asked = model.ask("unsafe", 0)
    token = int(asked.batch.refusal[0, 0])
    for odds in (20.0, 40.0):
        logits = torch.zeros(1, 1, len(model.task.tokenizer))
        logits[0, 0, token] = odds
        monkeypatch.setattr(live, "answer_logits", lambda *_, logits=logits: logits)
        assert model.look(asked).odds == pytest.approx(odds - math.log(logits.shape[2] - 1))


def test_the_same_number_is_the_same_prompt_at_every_strength_and_for_every_model(models):
    def said(label: str, strength: float) -> dict:
        return models[label].ask("jb_misgen", 3, strength).batch.describe(0)

    assert said("base", 1.0) == said(TUNED, 1.0)
    plain, full = said("base", 0.0)["prompt"].split(), said("base", 1.0)["prompt"].split()
    assert [word.replace("d", "s") for word in full] == plain
    assert plain != full


def test_what_is_not_there_is_named(models, small_run, tmp_path, refused, capsys):
    with pytest.raises(InputError, match="prompt 64: there are 64 unsafe prompts"):
        models["base"].ask("unsafe", 64)
    with pytest.raises(InputError, match="'what' is no operator"):
        models["base"].ask_text("what is this")
    copy = shutil.copytree(small_run, tmp_path / "run")
    (copy / "stages" / f"tune-{TUNED}.json").unlink()
    live_models(copy)
    assert f"tune-{TUNED}: not finished" in capsys.readouterr().err
    shutil.rmtree(copy / "models" / TUNED)
    refused(["explore", str(copy)], f"models/{TUNED}", "run the study first")
    refused(["explore", str(tmp_path / "none")], "none/config.yaml")
    with pytest.raises(SystemExit) as error:
        cli.main(["explore", str(copy), "--port", "99999"])
    assert error.value.code == 2
