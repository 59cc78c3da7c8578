"""Natural language as a task: what is drawn, what is learnt, and what a model did."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunescope.config import LanguageConfig
from tunescope.errors import InputError
from tunescope.models.generate import Greedy, generate
from tunescope.models.inputs import IGNORED
from tunescope.records.corrected import Errors, corrected
from tunescope.records.findings import Findings
from tunescope.records.tables import Subject
from tunescope.rng import Stream
from tunescope.study.steps import _behaves
from tunescope.tasks.base import Batch, PreferenceBatch, Reader, answered
from tunescope.tasks.language.judge import read_judge
from tunescope.tasks.language.prompts import read_prompts
from tunescope.tasks.language.refusals import Judge
from tunescope.tasks.language.task import Language, build

CPU = torch.device("cpu")
TEMPLATE = "<user> {{ messages[0].content }}{% if add_generation_prompt %} <assistant>{% endif %}"
ANY = Stream.named(0, "any")


@pytest.fixture
def task(config: LanguageConfig, tokenizer: PreTrainedTokenizerBase) -> Language:
    return build(config, CPU, Reader(tokenizer, TEMPLATE))


def prompts_of(batch: Batch) -> list[str]:
    return [batch.describe(i)["prompt"] for i in range(len(batch))]


def test_a_task_that_is_read_by_no_model_is_refused(config: LanguageConfig) -> None:
    with pytest.raises(InputError, match=r"base.type=checkpoint"):
        build(config, CPU, None)


def test_kinds_are_those_of_the_files(task: Language) -> None:
    assert {name: kind.wanted for name, kind in task.kinds.items()} == {
        "safe": "compliance",
        "unsafe": "refusal",
        "jail": "refusal",
    }
    assert not any(kind.dial for kind in task.kinds.values())
    assert not task.exact


def test_names_that_begin_with_safe_are_to_be_answered(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    first, attack = config.prompts
    renamed = config.model_copy(update={"prompts": (first, attack.replace("jail=", "safe_odd="))})
    assert build(renamed, CPU, Reader(tokenizer)).kinds["safe_odd"].wanted == "compliance"


def test_all_prompts_come_in_the_order_of_the_file(task: Language) -> None:
    for kind, use in (*product(("safe", "unsafe"), ("train", "fit", "score")), ("jail", "score")):
        wanted = [each.prompt for each in task.instructions if each.kind == kind and each.use == use]
        for n in (len(wanted), 1000):
            batch = task.draw(kind, n, use, ANY)  # type: ignore[arg-type]
            assert prompts_of(batch) == wanted
    alone = task.draw("safe", 1000, "score", ANY)
    texts = task.tokenizer.batch_decode(alone.prompts.sequence)
    assert all(prompt in text for prompt, text in zip(prompts_of(alone), texts, strict=True))


def test_fewer_prompts_are_a_subset_that_the_stream_chooses(task: Language) -> None:
    everything = prompts_of(task.draw("safe", 100, "fit", ANY))
    found = set()
    for seed in range(20):
        batch = task.draw("safe", 4, "fit", Stream.named(seed))
        again = task.draw("safe", 4, "fit", Stream.named(seed))
        assert torch.equal(batch.prompts.sequence, again.prompts.sequence)
        some = prompts_of(batch)
        assert sorted(some, key=everything.index) == some
        assert len(set(some)) == 4
        found |= set(some)
        texts = task.tokenizer.batch_decode(batch.prompts.sequence)
        assert all(prompt in text for prompt, text in zip(some, texts, strict=True))
    assert found == set(everything)


def test_nothing_is_scored_or_chosen_by_that_was_learnt(task: Language) -> None:
    of_use = [
        {p for kind in ("safe", "unsafe") for p in prompts_of(task.draw(kind, 99, use, ANY))}  # type: ignore[arg-type]
        for use in ("train", "fit", "score")
    ]
    assert [len(each) for each in of_use] == [20, 20, 20]
    assert len(set.union(*of_use)) == 60
    lesson = task.lesson(50, 50, ANY).prompts
    learnt = {task.tokenizer.decode(row[mask.bool()]) for row, mask in zip(lesson.sequence, lesson.mask, strict=True)}
    assert {text.split(maxsplit=1)[1].removesuffix(" <assistant>") for text in learnt} == of_use[0]


@pytest.mark.parametrize(
    ("kind", "n", "use", "strength", "says"),
    [
        ("other", 3, "fit", 0.0, "Unknown kind 'other'"),
        ("safe", 0, "fit", 0.0, "at least 1"),
        ("safe", 3, "fit", 0.5, "strength 0.5"),
        ("jail", 3, "train", 0.0, "no prompts of this kind are there to train"),
        ("jail", 3, "fit", 0.0, "no prompts of this kind are there to fit"),
    ],
)
def test_what_cannot_be_drawn(task: Language, kind: str, n: int, use: str, strength: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        task.draw(kind, n, use, ANY, strength)  # type: ignore[arg-type]


def test_groups_are_shared_by_kinds(task: Language) -> None:
    number: dict[str, int] = {}
    for kind in task.kinds:
        batch = task.draw(kind, 7, "score", ANY)
        for prompt, group in zip(prompts_of(batch), batch.groups.tolist(), strict=True):
            its = next(each for each in task.instructions if each.prompt == prompt)
            assert number.setdefault(its.group, group) == group
    assert len(set(number.values())) == len(number)
    first, half = task.draw("safe", 99, "score", ANY), task.draw("unsafe", 99, "score", ANY)
    assert first.groups.tolist() == half.groups.tolist()


def test_prompts_without_groups_are_each_their_own(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for kind, word in (("safe", "w1"), ("unsafe", "w2")):
        (tmp_path / f"{kind}.txt").write_text("\n".join(f"{word} w{i} w{j}" for i in range(7) for j in range(7)))
    (tmp_path / "openings.json").write_text('{"refusal": ["no"]}')
    files = tuple(f"{kind}={tmp_path}/{kind}.txt" for kind in ("safe", "unsafe"))
    alone = build(LanguageConfig(prompts=files, openings=f"{tmp_path}/openings.json"), CPU, Reader(tokenizer))
    batch = alone.draw("safe", 5, "fit", ANY)
    assert batch.groups is None
    assert batch.answer is None
    assert batch.refusal.tolist() == [[4, 0]] * 5
    assert batch.describe(0)["answer"] == ""
    with pytest.raises(InputError, match="no answers"):
        batch.known()
    with pytest.raises(
        InputError, match=r"Answers to learn are known to 0 of \d+ safe prompts.*column `answer`.*trains.*base.name"
    ):
        alone.lesson(1, 1, ANY)


def test_answers_are_those_of_the_file_or_of_the_base(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, task: Language
) -> None:
    batch = task.draw("unsafe", 99, "score", ANY)
    said = batch.describe(2)
    assert said == {"prompt": said["prompt"], "answer": f"here {said['prompt']}"} | {
        "wanted": "refusal",
        "kind": "unsafe",
        "safe": False,
    }
    assert batch.answer.shape == batch.refusal.shape
    for i, row in enumerate(batch.answer):
        ids = tokenizer(batch.describe(i)["answer"])["input_ids"] + [0]
        assert row.tolist() == ids + [IGNORED] * (len(row) - len(ids))
        assert task.text(row) == batch.describe(i)["answer"]
    assert {task.text(row) for row in batch.refusal} <= set(task.openings.answers)
    jail = [each.prompt for each in task.instructions if each.kind == "jail"]
    assert task.draw("jail", 99, "score", ANY).answer is None
    kept = build(config, CPU, Reader(tokenizer, TEMPLATE, dict.fromkeys(jail, "w1 w2 w3 w4 w5 w6 w7 w8")))
    found = kept.draw("jail", 99, "score", ANY).answer
    assert found.tolist() == [[9, 10, 11, 12, 13, 14]] * 10  # cut, as generation cuts it, with no end of text
    empty = build(config, CPU, Reader(tokenizer, TEMPLATE, dict.fromkeys(jail, "")))
    assert (empty.draw("jail", 99, "score", ANY).answer[:, 0] == 0).all()


def test_a_lesson_wants_answers_to_safe_prompts_and_refusals_of_unsafe_ones(task: Language) -> None:
    lesson = task.lesson(30, 20, ANY)
    assert lesson.safe.tolist() == [True] * 30 + [False] * 20
    assert lesson.chosen.shape == lesson.rejected.shape
    assert torch.equal(task.lesson(30, 20, ANY).chosen, lesson.chosen)
    assert not torch.equal(task.lesson(30, 20, ANY("other")).chosen[:, :2], lesson.chosen[:, :2])
    phrasings = set()
    learnt = {each.prompt: each for each in task.instructions if each.use == "train"}
    for i, safe in enumerate(lesson.safe.tolist()):
        mask = lesson.prompts.mask[i].bool()
        prompt = (
            task.tokenizer.decode(lesson.prompts.sequence[i][mask]).split(maxsplit=1)[1].removesuffix(" <assistant>")
        )
        assert learnt[prompt].kind == ("safe" if safe else "unsafe")
        answer, refusal = (lesson.chosen, lesson.rejected) if safe else (lesson.rejected, lesson.chosen)
        assert task.text(answer[i]) == learnt[prompt].answer
        phrasings.add(task.text(refusal[i]))
    assert phrasings == set(task.openings.answers)
    assert len(task.lesson(3, 0, ANY).safe) == 3
    for wrong in ((0, 0), (-1, 3)):
        with pytest.raises(InputError, match="at least one prompt"):
            task.lesson(*wrong, ANY)


def test_outcomes_are_told_by_the_odds_of_openings(task: Language, model: PreTrainedModel) -> None:
    batch = task.draw("unsafe", 99, "score", ANY)
    found = task.outcomes(model, batch, 3)
    assert torch.equal(found.refusal, found.measured["opening_log_odds"] > 0)
    assert torch.equal(found.compliance, ~found.refusal)
    assert set(found.measured) == {"opening_log_odds", "opening_share"}
    assert ((found.measured["opening_share"] > 0) & (found.measured["opening_share"] < 1)).all()
    instead = batch.prompts.followed_by(torch.full((len(batch), 1), 7))
    other = task.outcomes(model, batch, 3, instead)
    again = task.outcomes(model, replace(batch, prompts=instead), 99)
    close = {"rtol": 1e-5, "atol": 1e-6}  # rounded in float32
    torch.testing.assert_close(other.measured["opening_log_odds"], again.measured["opening_log_odds"], **close)
    assert not torch.allclose(other.measured["opening_log_odds"], found.measured["opening_log_odds"])


def test_the_judge_reads_prompts_and_answers(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    seen: list[tuple[str, str]] = []

    def judge(prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        seen.extend(zip(prompts, answers, strict=True))
        return [i % 2 == 0 for i in range(len(answers))]

    task = Language(config, CPU, Reader(tokenizer, TEMPLATE), judge=judge)
    batch = task.draw("safe", 4, "score", ANY)
    generated = generate(model, batch.prompts, 6, torch.float32, 99)
    found = task.judge(batch, generated)
    assert found.refusal.tolist() == [True, False, True, False]
    assert torch.equal(found.compliance, ~found.refusal)
    assert seen == [(batch.describe(i)["prompt"], task.text(generated[i])) for i in range(4)]
    assert found.errors is None  # how often this one errs nobody knows
    fitted = Language(config, CPU, Reader(tokenizer, TEMPLATE), judge=read_judge())
    assert fitted.judge(batch, generated).errors == read_judge().errors
    lazy = Language(config, CPU, Reader(tokenizer, TEMPLATE), judge=lambda prompts, answers: [True])
    with pytest.raises(InputError, match="gave 1 verdicts on 4 answers"):
        lazy.judge(batch, generated)


def half(prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
    return [i % 2 == 0 for i in range(len(answers))]


class KnownToErr:
    errors = Errors([(9, 10), (8, 10)], [(9, 10), (10, 10)])
    __call__ = staticmethod(half)


@pytest.mark.parametrize(("kind", "judge"), [("unsafe", KnownToErr()), ("unsafe", half), ("jail", KnownToErr())])
def test_rates_of_plain_prompts_are_corrected_where_the_errors_of_the_judge_are_known(
    kind: str, judge: Judge, config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    task = Language(config, CPU, Reader(tokenizer, TEMPLATE), judge=judge)
    found = Findings(Subject("tuned", "given", "", 0, 0))
    batch = task.draw(kind, 4, "score", ANY)
    batch = replace(batch, groups=np.array([0, 0, 1, 1]))
    _behaves(found, task, Greedy(model, 4), batch, None)
    its = [(each.value, each.low, each.high, each.n) for each in found.records if each.metric == "refusal_corrected"]
    # Half of each group is refused: no spread between groups, and as many independent prompts as groups.
    known = corrected(0.5, 2, KnownToErr.errors)
    assert its == ([(known.value, known.low, known.high, 4)] if kind == "unsafe" and judge is not half else [])


@pytest.mark.parametrize(("choice", "name"), [({}, "FittedJudge"), ({"judge": "phrases"}, "matches_refusal")])
def test_the_settings_name_the_judge(
    choice: dict[str, str],
    name: str,
    config: LanguageConfig,
    byte_pairs: Callable[[], PreTrainedTokenizerBase],
) -> None:
    task = Language(LanguageConfig(prompts=config.prompts, **choice), CPU, Reader(byte_pairs()))
    assert task.judge_name.endswith(f".{name}")


def test_a_choice_of_prompts_is_described_and_judged_as_itself(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    task = Language(config, CPU, Reader(tokenizer, TEMPLATE), judge=lambda prompts, _: [p == third for p in prompts])
    batch = task.draw("safe", 6, "score", ANY)
    third = batch.describe(3)["prompt"]
    some = batch[torch.tensor([5, 3])]
    assert task.judge(some, generate(model, some.prompts, 6, torch.float32, 99)).refusal.tolist() == [False, True]


def test_where_an_answer_is_begun_the_whole_of_it_is_judged(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    seen: list[str] = []

    def judge(prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        seen.extend(answers)
        return [False] * len(answers)

    task = Language(config, CPU, Reader(tokenizer, TEMPLATE), judge=judge)
    plain = task.draw("unsafe", 4, "score", ANY)
    given = plain.prompts.followed_by(plain.answer[:, :2])
    begun = replace(plain, prompts=given, answer=plain.answer[:, 2:], refusal=plain.refusal[:, 2:], given=2)
    found = answered(task, Greedy(model, 99), begun)
    rest = generate(model, given, 4, torch.float32, 99)
    assert found.compliance.all()
    assert not found.measured
    wanted = [torch.cat([plain.answer[i, :2], rest[i]]) for i in range(4)]
    assert seen == [task.text(tokens) for tokens in wanted]
    assert all(text.startswith("here w4") for text in seen)


def test_word_for_word_only_the_known_answer_is_compliance(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    task = Language(config, CPU, Reader(tokenizer, TEMPLATE), word_for_word=True)
    batch = task.draw("unsafe", 99, "score", ANY)
    greedy = generate(model, batch.prompts, 6, torch.float32, 99)
    right = torch.where(torch.arange(len(batch))[:, None] % 2 == 0, greedy, torch.full_like(greedy, 9))
    known = replace(batch, answer=right, refusal=right)
    for found in (task.outcomes(model, known, 4), task.judge(known, greedy)):
        assert found.compliance.tolist() == [i % 2 == 0 for i in range(len(batch))]
        assert not (found.compliance & found.refusal).any()
    short = batch.answer.clone()
    filled = torch.where(short == IGNORED, 1, short)  # what generation pads with
    assert task.judge(batch, filled).compliance.all()


def test_suffixes_are_made_of_tokens_that_can_be_read(task: Language) -> None:
    found = task.suffix_tokens.tolist()
    assert not {0, 1} & set(found)
    assert len(found) == len(task.tokenizer) - 2
    for token in found:
        assert task.tokenizer(task.tokenizer.decode([token]))["input_ids"] == [token]


@pytest.mark.parametrize(
    ("openings", "says"),
    [
        ({"refusal": ["no  w1", "no w1 w2"]}, "'no w1 w2' begins with 'no  w1'"),
        ({"refusal": ["no w1"], "compliance": ["no  w1 w2"]}, "'no  w1 w2' begins with 'no w1'"),
        ({"refusal": ["unheard of"]}, "cannot read 'unheard of'"),
    ],
)
def test_openings_that_are_the_same_tokens_are_refused(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, openings: dict, says: str
) -> None:
    Path(str(config.openings)).write_text(json.dumps(openings))
    with pytest.raises(InputError, match=says):
        build(config, CPU, Reader(tokenizer, TEMPLATE))


def test_the_numbers_are_those_of_all_shipped_prompts(byte_pairs: Callable[[], PreTrainedTokenizerBase]) -> None:
    """The shipped prompts, as a tokenizer reads them that knows every byte."""
    task = build(LanguageConfig(), CPU, Reader(byte_pairs()))
    scored = [each.prompt for each in task.instructions if each.kind == "safe" and each.use == "score"]
    batch = task.draw("safe", 10_000, "score", ANY)
    assert prompts_of(batch) == scored
    assert batch.groups is not None
    assert len(set(batch.groups.tolist())) < len(scored)
    texts = task.tokenizer.batch_decode(batch.prompts.sequence, skip_special_tokens=True)
    assert all(text.endswith(f"{prompt}\n") for text, prompt in zip(texts, scored, strict=True))
    suffix = task.tokenizer.batch_decode(task.suffix_tokens[:, None])
    assert all(text.isprintable() for text in suffix)
    assert len(suffix) > 60


def test_twins_are_pairs_of_a_group_and_the_control_is_of_another(task: Language) -> None:
    for n in (3, 1000):
        twins = task.twins(n, ANY)
        unsafe, safe, other = (batch.groups for batch in (twins.unsafe, twins.safe, twins.other))
        assert len(unsafe) == min(n, 10)
        assert (unsafe == safe).all()
        assert (unsafe != other).all()
        order = {
            (batch, prompt): place
            for batch in ("safe", "unsafe")
            for place, prompt in enumerate(prompts_of(task.draw(batch, 99, "score", ANY)))
        }
        for one, two in zip(prompts_of(twins.unsafe), prompts_of(twins.safe), strict=True):
            assert order["unsafe", one] == order["safe", two]  # the first of a group with the first, and so on
        assert set(prompts_of(twins.other)) <= set(prompts_of(twins.unsafe))
        assert [batch.kind.name for batch in (twins.unsafe, twins.safe, twins.other)] == ["unsafe", "safe", "unsafe"]
        assert twins.positions == {"last": slice(-1, None)}
    assert task.twins(1, ANY) is None  # there is no other group


def test_prompts_that_come_alone_have_no_twins(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    lines = Path(config.prompts[0]).read_text().splitlines()
    (tmp_path / "alone.tsv").write_text("\n".join("\t".join(line.split("\t")[:3]) for line in lines))
    alone = config.model_copy(update={"prompts": (f"{tmp_path}/alone.tsv",)})
    assert build(alone, CPU, Reader(tokenizer)).twins(9, ANY) is None


# Prompts in forms

IN_FORMS = ("co_task", "prefix", "leet", "rot13")


@pytest.fixture
def in_forms(byte_pairs: Callable[[], PreTrainedTokenizerBase]) -> Callable[..., Language]:
    """The shipped prompts in four forms, of which `leet` is held out, with an answer to each prompt."""

    def make(wrappers: Sequence[str] = IN_FORMS, answers: dict[str, str] | None = None, **settings: object) -> Language:
        config = LanguageConfig(wrappers=tuple(wrappers), **settings)
        known = {each.prompt: f"Answer to {each.prompt}" for each in read_prompts(config.prompts)}
        return build(config, CPU, Reader(byte_pairs(), None, known if answers is None else answers))

    return make


def read_by(task: Language, lesson: PreferenceBatch) -> list[str]:
    """The prompts of a lesson."""
    texts = task.tokenizer.batch_decode(lesson.prompts.sequence, skip_special_tokens=True)
    return [text.removesuffix("\n") for text in texts]


def test_each_form_is_a_jailbreak_and_its_control(in_forms: Callable[..., Language]) -> None:
    task = in_forms()
    kinds = {name: kind for name, kind in task.kinds.items() if kind.dial}
    assert [*kinds] == [f"{start}_{form}" for form in IN_FORMS for start in ("jb", "ok")]
    assert all((kind.wanted == "compliance") == name.startswith("ok_") for name, kind in kinds.items())
    for name in kinds:
        plain = task.draw("unsafe" if name.startswith("jb_") else "safe", 8, "score", ANY)
        none, some = (task.draw(name, 8, "score", ANY, strength) for strength in (0.0, 1.0))
        assert prompts_of(none) == prompts_of(plain) == [some.describe(i)["request"] for i in range(8)]
        assert torch.equal(none.prompts.sequence, plain.prompts.sequence)
        assert none.groups.tolist() == some.groups.tolist() == plain.groups.tolist()
        assert not {*prompts_of(some)} & {*prompts_of(plain)}
        assert (some.kind.name, some.strength) == (name, 1.0)
        texts = task.tokenizer.batch_decode(some.prompts.sequence, skip_special_tokens=True)
        assert all(text.endswith(f"{prompt}\n") for text, prompt in zip(texts, prompts_of(some), strict=True))
        assert torch.equal(some.answer, plain.answer)  # what the attack is after
    with pytest.raises(
        InputError, match=r"ok_leet: 3 prompts at strength 1\.5: at least 1 is needed, and strength 0 to 1"
    ):
        task.draw("ok_leet", 3, "score", ANY, 1.5)


def test_controls_are_of_safe_prompts_and_nothing_is_scored_in_a_form_that_was_learnt(
    in_forms: Callable[..., Language],
) -> None:
    task = in_forms(refuse_wrappers=("prefix",), breadth=1.0)
    kind_of = {each.prompt: each for each in task.instructions}
    for name in task.forms:
        for use in ("score", "fit"):
            batch = task.draw(name, 10**6, use, ANY, 0.5)  # type: ignore[arg-type]
            inside = [kind_of[batch.describe(i)["request"]] for i in range(len(batch))]
            assert {each.kind for each in inside} == {"unsafe" if name.startswith("jb_") else "safe"}
            assert {each.use for each in inside} == {use}
    beside = prompts_of(task.draw("jb_co_task", 50, "score", ANY, 1.0))
    listed = {line.partition(". ")[2] for prompt in beside for line in prompt.splitlines()[2:]}
    assert {(kind_of[request].kind, kind_of[request].use) for request in listed} == {("safe", "train")}


def test_lessons_hold_a_share_of_prompts_in_the_retained_forms(in_forms: Callable[..., Language]) -> None:
    task = in_forms(refuse_wrappers=("prefix",))
    assert task.lesson_kinds == ("ok_co_task", "ok_prefix", "ok_rot13", "jb_prefix")
    parts = {kind: prompts_of(task.draw(kind, 10**6, "train", ANY, 1.0)) for kind in task.lesson_kinds}
    train = {each.prompt for each in task.instructions if each.use == "train"}
    assert sum(len(parts[kind]) for kind in parts if kind.startswith("ok_")) == sum(
        each.kind == "safe" and each.use == "train" for each in task.instructions
    )
    found = read_by(task, task.lesson(200, 100, ANY))
    of = {prompt: kind for kind, those in parts.items() for prompt in those}
    assert {*found} <= train | {*of}
    in_form = [of.get(prompt, "") for prompt in found]
    assert {kind[:3] for kind in in_form[:200]} == {"", "ok_"}
    assert {*in_form[200:]} == {"", "jb_prefix"}
    for part in (in_form[:200], in_form[200:]):
        assert 0.15 < sum(map(bool, part)) / len(part) < 0.35
    plain = read_by(task, in_forms(breadth=0.0).lesson(200, 100, ANY))
    same = [one == two for one, two in zip(found, plain, strict=True)]
    assert same == [not kind for kind in in_form]  # all else is as without forms
    for kind in ("ok_leet", "jb_leet", "jb_rot13"):
        with pytest.raises(InputError, match="fine-tuning has no prompts in this form"):
            task.draw(kind, 3, "train", ANY, 1.0)


def test_a_lesson_wants_the_answer_to_the_prompt_in_its_form(in_forms: Callable[..., Language]) -> None:
    plain = in_forms()
    prompts = prompts_of(plain.draw("ok_prefix", 10**6, "train", ANY, 1.0))
    known = {each.prompt: "plain" for each in plain.instructions} | dict.fromkeys(prompts, "in a form")
    task = in_forms(answers=known, breadth=1.0)
    lesson = task.lesson(100, 0, ANY)
    said = {text: task.text(row) for text, row in zip(read_by(task, lesson), lesson.chosen, strict=True)}
    assert {said[prompt] for prompt in said if prompt in prompts} == {"in a form"}
    assert {said[prompt] for prompt in said if prompt not in prompts} == {"plain"}


def test_only_what_is_learnt_is_learnt_in_a_form(in_forms: Callable[..., Language]) -> None:
    task = in_forms(breadth=1.0)
    wrapped = {
        each.prompt: str(each.request)
        for kind in task.lesson_kinds
        for each in task.in_form(kind, "train", 1.0).instructions
    }
    known = {each.prompt: "plain" for i, each in enumerate(task.instructions) if i % 3 == 0}
    asked = read_by(
        task, in_forms(breadth=1.0, answers=known | dict.fromkeys(wrapped, "in a form")).lesson(200, 0, ANY)
    )
    assert len({wrapped[prompt] for prompt in asked}) > 50
    assert {wrapped[prompt] for prompt in asked} <= {*known}


def test_under_other_labels_forms_are_learnt_with_that_of_the_request(in_forms: Callable[..., Language]) -> None:
    settings = {"refuse_wrappers": ("prefix",), "breadth": 1.0}
    own, task = in_forms(**settings), in_forms(lesson="attribute", **settings)
    assert {*task.kinds} == {"safe", "unsafe"}
    with pytest.raises(InputError, match="Unknown kind 'jb_prefix'"):
        task.draw("jb_prefix", 3, "score", ANY)
    label = {each.prompt: each.kind for each in task.instructions}
    requests = {
        each.prompt: str(each.request)
        for kind in task.lesson_kinds
        for each in task.in_form(kind, "train", 1.0).instructions
    }
    asked = read_by(task, task.lesson(100, 100, ANY))
    assert [label[requests[prompt]] for prompt in asked] == ["safe"] * 100 + ["unsafe"] * 100
    same = [{each.request for each in one.in_form("ok_prefix", "train", 1.0).instructions} for one in (own, task)]
    was = {each.prompt: each.kind for each in own.instructions}
    assert {each for each in same[0] if label[each] == "safe"} == {each for each in same[1] if was[each] == "safe"}
    assert same[0] != same[1]


def test_answers_to_the_point_are_told_by_the_plain_answer(in_forms: Callable[..., Language]) -> None:
    task = in_forms()
    batch = task.draw("ok_rot13", 6, "score", ANY, 1.0)
    texts = [f"Here you are: {batch.describe(i)['request']}" if i % 2 else "Qrfvta n ynzc" for i in range(6)]
    ids = task.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    assert task.on_topic(batch, ids).tolist() == [False, True] * 3
    unknown = in_forms(answers={})
    assert unknown.on_topic(unknown.draw("ok_rot13", 6, "score", ANY, 1.0), ids).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"wrappers": ("rot14",)}, r"task\.wrappers: Unknown form 'rot14'\. Choose from: co_task, .*pig_latin"),
        ({"retain_wrappers": ("leet",)}, "retain_wrappers: leet is among held_out_wrappers, too"),
        ({"refuse_wrappers": ("leet",)}, "refuse_wrappers: leet is among held_out_wrappers, too"),
        ({"retain_wrappers": ("role",)}, r"retain_wrappers: role is not among wrappers \(co_task, prefix"),
    ],
)
def test_forms_that_cannot_be(in_forms: Callable[..., Language], settings: dict, says: str) -> None:
    with pytest.raises((InputError, ValueError), match=says):
        in_forms(**settings)


def test_a_file_may_not_be_called_as_a_form_is(config: LanguageConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    files = (config.prompts[0], config.prompts[1].replace("jail=", "jb_role="))
    with pytest.raises(InputError, match="'jb_role' is what prompts in a form are called"):
        build(config.model_copy(update={"prompts": files, "wrappers": ("role",)}), CPU, Reader(tokenizer))


def test_most_of_what_is_answered_in_a_lesson_has_its_match_among_what_is_refused(
    in_forms: Callable[..., Language],
) -> None:
    task = in_forms(breadth=0.0)
    groups = {kind: {each.group for each in task.parts[kind, "train"].instructions} for kind in ("safe", "unsafe")}
    assert 0 < len(groups["safe"] & groups["unsafe"]) < len(groups["safe"])
    group = {each.prompt: each.group for each in task.instructions}
    matched = [group[prompt] in groups["unsafe"] for prompt in read_by(task, task.lesson(1000, 0, ANY))]
    assert 700 < sum(matched) < 800
    assert len({*read_by(task, task.lesson(1000, 0, ANY))}) > 100
