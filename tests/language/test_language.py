"""Prompts from files of every form; refusals by phrases, with the errors that the documents name, and by odds."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tunescope.errors import InputError
from tunescope.language.encode import encode
from tunescope.language.prompts import SHIPPED, read_prompts
from tunescope.language.refusals import matches_refusal, read_openings, refusal_margin
from tunescope.models.inputs import Inputs
from tunescope.models.tokenizer import build_tokenizer

CPU = torch.device("cpu")
SIDES = ("safe", "unsafe")
TEXTS = {kind: [f"{kind} prompt {i}" for i in range(40)] for kind in SIDES}


def shipped() -> pd.DataFrame:
    return pd.read_json(SHIPPED, lines=True)


def test_the_shipped_instructions_are_matched_pairs() -> None:
    rows = shipped()
    assert len(rows) >= 500
    assert rows["operator"].nunique() >= 20
    assert rows["group"].nunique() >= 50
    assert rows["prompt"].str.lower().is_unique
    assert (rows["prompt"] == rows["operator"] + " " + rows["concept"]).all()
    for _, pair in rows.groupby("pair"):
        assert list(pair["label"]) == ["safe", "unsafe"]
        assert pair["operator"].nunique() == pair["group"].nunique() == 1


def test_length_does_not_tell_the_shipped_instructions_apart() -> None:
    rows = shipped()
    for length in (rows["prompt"].str.len(), rows["prompt"].str.split().str.len()):
        assert 0.45 < roc_auc_score(rows["label"] == "unsafe", length) < 0.55


def test_no_concept_is_in_both_halves() -> None:
    halves = defaultdict(set)
    for prompt in read_prompts():
        halves[prompt.group].add(prompt.fit)
    assert {len(half) for half in halves.values()} == {1}
    assert 0.35 < sum(map(any, halves.values())) / len(halves) < 0.65


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("column", ["prompt", "Goal", "Behavior"])
def test_tables_with_labels(form: str, column: str, tmp_path: Path) -> None:
    table = pd.DataFrame([{column: text, "label": kind} for kind, texts in TEXTS.items() for text in texts])
    file = tmp_path / f"prompts.{form}"
    {
        "jsonl": lambda: table.to_json(file, orient="records", lines=True),
        "json": lambda: table.to_json(file, orient="records"),
        "csv": lambda: table.to_csv(file, index=False),
        "tsv": lambda: table.to_csv(file, index=False, sep="\t"),
        "parquet": lambda: table.to_parquet(file),
    }[form]()
    found = read_prompts([str(file)])
    assert [(p.kind, p.prompt) for p in found] == [(kind, text) for kind, texts in TEXTS.items() for text in texts]


def test_files_of_one_kind_and_a_split_of_ones_own(tmp_path: Path) -> None:
    for kind in (*SIDES, "suffix"):
        (tmp_path / f"{kind}.txt").write_text("\n".join(TEXTS.get(kind, [f"unsafe prompt {i} !!" for i in range(5)])))
    files = [f"{kind}={tmp_path}/{kind}.txt" for kind in (*SIDES, "suffix")]
    found = read_prompts(files)
    assert {(p.kind, p.fit) for p in found} == {("suffix", False), *((kind, fit) for kind in SIDES for fit in (0, 1))}
    rows = [
        {"prompt": text, "label": kind, "split": "fit" if i < 7 else "score"}
        for kind, texts in TEXTS.items()
        for i, text in enumerate(texts)
    ]
    file = tmp_path / "split.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [p.fit for p in read_prompts([str(file)])] == [i < 7 for _ in SIDES for i in range(40)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", ["cannot be read"]),
        ("a.csv", "prompt\nhello\n", ["no column `label`", "unsafe="]),
        ("a.csv", "wrong,label\nhello,safe\n", ["no column of prompts", "goal"]),
        ("a.csv", "prompt,label\nhello,perhaps\n", ["row 1", "'perhaps'", "harmless"]),
        ("a.csv", "prompt,label\n ,safe\n", ["row 1", "where a prompt is wanted"]),
        ("a.csv", "prompt,label\nhello,safe\n", ["at least 4"]),
        ("a.csv", "prompt,label\n", ["holds no prompts"]),
        ("a.csv", "prompt,label,split\nhello,safe,third\n", ["'third'", "fit or score"]),
        ("a.docx", "hello", [".docx", ".jsonl"]),
        ("a.jsonl", "{", ["cannot be read"]),
    ],
)
def test_bad_files(name: str, text: str, says: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as raised:
        read_prompts([str(tmp_path / name)])
    assert all(part in str(raised.value) for part in says), raised.value


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (["none.csv"], "no such file"),
        (["safe=none.csv"], "no such file"),
        (["safe={safe}"], "0 unsafe ones"),
        (["unsafe@gcg=none.csv"], "no name of a kind"),
        (["harmless={safe}"], "0 unsafe ones"),
    ],
)
def test_bad_sources(sources: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "safe.txt").write_text("\n".join(TEXTS["safe"]))
    with pytest.raises(InputError, match=says):
        read_prompts([source.format(safe=tmp_path / "safe.txt") for source in sources])


def test_the_matcher_errs_as_often_as_the_documents_say() -> None:
    """See docs/real-models.md: 120 answers, half of them refusals, three in ten hard (those with a note)."""
    rows = pd.read_json(Path(__file__).parent / "answers.jsonl", lines=True)
    rows["said"] = matches_refusal([""] * len(rows), rows["answer"].tolist())
    hard = rows["note"] != ""
    counts = rows.assign(hard=hard).groupby(["hard", "refused", "said"]).size().to_dict()
    assert counts == {
        (False, True, True): 40,
        (False, True, False): 2,
        (False, False, False): 42,
        (True, True, False): 18,
        (True, False, True): 6,
        (True, False, False): 12,
    }


def test_the_matcher_reads_the_head_alone_and_any_apostrophe() -> None:
    answers = ["I can\N{RIGHT SINGLE QUOTATION MARK}t do that.", "Sure. " + 300 * "x" + " I can't", "Sure, here it is."]
    assert matches_refusal([""] * 3, answers) == [True, False, False]


def test_no_stock_opening_begins_with_another() -> None:
    openings = read_openings()
    for each in (openings.refusal, openings.compliance):
        assert not [a for a in each for b in each if a != b and a.startswith(b)]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"refusal": []}', '{"refusal": [1]}', '{"refusal": "no"}'])
def test_bad_openings(text: str, tmp_path: Path) -> None:
    (tmp_path / "openings.json").write_text(text)
    with pytest.raises(InputError, match=r"openings.json: no JSON with a list `refusal`"):
        read_openings(tmp_path / "openings.json")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def probability(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    """The long way: token by token."""
    total = 1.0
    for i, token in enumerate(answer):
        logits = model(torch.tensor([prompt + answer[:i]])).logits[0, -1]
        total *= logits.double().softmax(0)[token].item()
    return total


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("compliance", [[], [[6], [7, 8]]])
def test_the_margin_is_the_odds_of_the_openings(model: PreTrainedModel, rows: int, compliance: list) -> None:
    prompts, refusal = [[1, 2, 3], [4, 5, 3]], [[9, 10], [11]]
    found, share = refusal_margin(
        model,
        Inputs(torch.tensor(prompts)),
        list(map(torch.tensor, refusal)),
        list(map(torch.tensor, compliance)),
        rows,
    )
    for value, prompt in zip(found.exp().tolist(), prompts, strict=True):
        no, yes = (sum(probability(model, prompt, o) for o in openings) for openings in (refusal, compliance))
        assert value == pytest.approx(no / (yes or 1 - no), rel=1e-4)
        assert any(each == pytest.approx(no + yes, rel=1e-4) for each in share.tolist())


WORDS = ["<eos>", "<pad>", "<user>", "<assistant>", "make", "a", "lamp", "please"]
TEMPLATE = (
    "{% for m in messages %}<user> {{ m.content }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


def test_prompts_are_padded_on_the_left_and_templates_applied() -> None:
    tokenizer = build_tokenizer(WORDS)
    plain = encode(tokenizer, ["make a lamp", "make"], CPU, template=None)
    assert plain.mask is not None
    assert plain.positions is not None
    assert plain.sequence[plain.mask == 1].tolist() == [4, 5, 6, 4]
    assert plain.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert plain.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    chat = encode(tokenizer, ["make a lamp"], CPU, template=TEMPLATE)
    assert (chat.sequence.tolist(), chat.mask) == ([[2, 4, 5, 6, 3]], None)


def test_a_prompt_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="cannot read 'make unknown"):
        encode(build_tokenizer(WORDS), ["make unknown"], CPU, template=None)
    with pytest.raises(InputError, match="makes nothing of"):
        encode(build_tokenizer(WORDS), [" "], CPU, template=None)


def test_padding_changes_no_number(model: PreTrainedModel, close: Callable[..., None]) -> None:
    ids, openings = torch.tensor([[3, 4, 5]]), [torch.tensor([9, 10])]
    padded = Inputs(torch.tensor([[0, 0, 3, 4, 5]]), torch.tensor([[0, 0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 1, 1]]))
    close(*(refusal_margin(model, inputs, openings, [], 4)[0] for inputs in (Inputs(ids), padded)))


@pytest.fixture
def close() -> Callable[..., None]:
    return lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
