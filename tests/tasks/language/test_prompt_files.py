"""Prompts from files of every form, and what is refused; the shipped instructions."""

import json
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tunescope.config import LanguageConfig
from tunescope.errors import InputError
from tunescope.tasks.language.prompts import DATA, USES, read_prompts
from tunescope.tasks.language.reading import READERS

SIDES = ("safe", "unsafe")
TEXTS = {kind: [f"{kind} prompt {i}" for i in range(40)] for kind in SIDES}
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def shipped() -> pd.DataFrame:
    return pd.read_json(DATA / "instructions.jsonl", lines=True)


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


def test_no_concept_is_in_two_parts() -> None:
    parts = defaultdict(set)
    for prompt in read_prompts(["shipped:instructions"]):
        parts[prompt.group].add(prompt.use)
    assert Counter(tuple(each) for each in parts.values()) == {("train",): 30, ("fit",): 15, ("score",): 30}


def test_what_is_shipped_by_name() -> None:
    found = read_prompts(LanguageConfig().prompts)
    kinds = Counter((p.kind, p.use) for p in found if p.kind not in SIDES)
    assert kinds == {("safe_xstest", "score"): 250, ("xstest_unsafe", "score"): 200}
    named = {*pd.read_json(DATA / "ordinary.jsonl", lines=True)["prompt"]}
    ordinary = [p for p in found if p.prompt in named]
    assert {(p.kind, p.use, p.group == p.prompt) for p in ordinary} == {("safe", "train", True)}
    assert len(ordinary) >= 150
    texts = [p.prompt.strip(" ?.!").lower() for p in found]
    assert len({*texts}) == len(texts)  # nothing that is learnt from is scored
    assert len({p.prompt.split()[0] for p in ordinary}) > 40
    with pytest.raises(InputError, match=r"'shipped:more': unknown. Choose from: shipped:instructions, "):
        read_prompts(["shipped:more"])


@pytest.mark.parametrize("column", ["prompt", "jailbreak"])
@pytest.mark.parametrize("form", ["artefact", "csv"])
def test_attacks_on_goals_are_of_their_groups(form: str, column: str, tmp_path: Path) -> None:
    """As the artefacts of JailbreakBench: a goal, and a prompt that is after it, where one was found."""
    pd.DataFrame({"Goal": TEXTS["unsafe"]}).to_csv(tmp_path / "goals.csv")
    (tmp_path / "safe.txt").write_text("\n".join(TEXTS["safe"]))
    rows = [{"index": i, "goal": g, column: f"{g} !!" if i % 4 else None} for i, g in enumerate(TEXTS["unsafe"])]
    file = tmp_path / f"attack.{'json' if form == 'artefact' else form}"
    if form == "artefact":
        file.write_text(json.dumps({"parameters": {"method": "GCG"}, "jailbreaks": rows}))
    else:
        pd.DataFrame(rows).to_csv(file, index=False)
    found = read_prompts([f"safe={tmp_path}/safe.txt", f"unsafe={tmp_path}/goals.csv", f"gcg={file}"])
    plain = {each.prompt: each for each in found if each.kind == "unsafe"}
    attacks = [each for each in found if each.kind == "gcg"]
    assert [each.prompt for each in attacks] == [
        f"{goal} !!" for i, goal in enumerate(TEXTS["unsafe"]) if i % 4 and plain[goal].use == "score"
    ]
    assert all(each.group == plain[each.prompt.removesuffix(" !!")].group for each in attacks)
    pd.DataFrame({"goal": TEXTS["unsafe"], "prompt": None}).to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(InputError, match=r"none\.csv.: it has goals, and no prompt for any"):
        read_prompts([f"safe={tmp_path}/safe.txt", f"unsafe={tmp_path}/goals.csv", f"gcg={tmp_path}/none.csv"])


@pytest.mark.parametrize("form", ["jsonl", "json", "columns", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("column", ["prompt", "Goal", "Behavior"])
def test_tables_with_labels(form: str, column: str, tmp_path: Path) -> None:
    table = pd.DataFrame([{column: text, "label": kind} for kind, texts in TEXTS.items() for text in texts])
    table["group"] = [i // 2 if i % 5 else None for i in range(len(table))]
    table["answer"] = ["Yes, but: x" if i % 3 else None for i in range(len(table))]
    file = tmp_path / f"prompts.{'json' if form == 'columns' else form}"
    {
        "jsonl": lambda: table.to_json(file, orient="records", lines=True),
        "json": lambda: table.to_json(file, orient="records"),
        "columns": lambda: table.to_json(file),
        "csv": lambda: table.to_csv(file, index=False),
        "tsv": lambda: table.to_csv(file, index=False, sep="\t"),
        "parquet": lambda: table.to_parquet(file),
    }[form]()
    found = read_prompts([str(file)])
    assert [(p.kind, p.prompt) for p in found] == [(kind, text) for kind, texts in TEXTS.items() for text in texts]
    assert [p.answer is None for p in found] == [i % 3 == 0 for i in range(80)]
    assert [p.group == p.prompt for p in found] == [i % 5 == 0 for i in range(80)]


def test_files_of_one_kind_and_a_split_of_ones_own(tmp_path: Path) -> None:
    for kind in (*SIDES, "suffix"):
        (tmp_path / f"{kind}.txt").write_text("\n".join(TEXTS.get(kind, [f"unsafe prompt {i} !!" for i in range(5)])))
    files = [f"{kind}={tmp_path}/{kind}.txt" for kind in (*SIDES, "suffix")]
    found = read_prompts(files)
    assert {(p.kind, p.use) for p in found} == {("suffix", "score"), *product(SIDES, USES)}
    rows = [
        {"prompt": text, "label": kind, "split": USES[min(i // 7, 2)]}
        for kind, texts in TEXTS.items()
        for i, text in enumerate(texts)
    ]
    file = tmp_path / "split.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [p.use for p in read_prompts([str(file)])] == [USES[min(i // 7, 2)] for _ in SIDES for i in range(40)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", ["cannot be read", "empty"]),
        ("a.csv", "prompt\nhello\n", ["no column `label`", "unsafe="]),
        ("a.csv", "wrong,label\nhello,safe\n", ["no column of prompts", "goal"]),
        ("a.csv", "prompt,label\nhello,perhaps\n", ["row 1", "'perhaps'", "harmless"]),
        ("a.csv", "prompt,label\n ,safe\n", ["row 1", "where a prompt is wanted"]),
        ("a.csv", "prompt,label\n,safe\n", ["row 1", "where a prompt is wanted"]),
        ("a.csv", "prompt,label\nhello,safe\n", ["is unsafe; both labels are needed"]),
        ("a.csv", "prompt,label\nhello,safe\nbomb,unsafe\n", ["at least 4"]),
        ("a.csv", "prompt,label\n", ["holds no prompts"]),
        ("a.csv", "prompt,label\nhello,safe,more\n", ["row 1 has 3 cells"]),
        ("a.csv", "prompt,label,Prompt\na,safe,b\n", ["two columns have one name"]),
        ("a.csv", 'prompt,label\n"hello,safe\nb,safe\n', ["cannot be read"]),
        ("a.csv", "prompt,label,split\nhello,safe,third\n", ["'third'", "train, fit or score"]),
        ("a.txt", "hello\n\nhello", ["row 1", "no column `label`"]),
        ("a.docx", "hello", [".docx", ".jsonl"]),
        ("a.jsonl", "{", ["cannot be read"]),
        ("a.jsonl", "[1]", ["row 1", "an object is wanted"]),
        ("a.jsonl", '{"prompt": 3, "label": "safe"}', ["row 1", "3, where a prompt is wanted"]),
        ("a.jsonl", '{"prompt": "a", "label": "safe", "group": []}', ["row 1", "group"]),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "a", "label": "safe"}', ["row 1", "None is no label"]),
        ("a.jsonl", '{"prompt": "a", "label": "safe", "answer": 3}', ["row 1", "answer", "string"]),
    ],
)
def test_bad_files(name: str, text: str, says: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as raised:
        read_prompts([str(tmp_path / name)])
    assert any(part in str(raised.value) for part in says), raised.value
    assert all(part in str(raised.value) for part in says if part != "row 1" or name != "a.txt"), raised.value


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (["none.csv"], "no such file"),
        (["safe=none.csv"], "no such file"),
        ([500 * "x"], "cannot be read"),
        (["safe={safe}"], "is unsafe; both labels are needed"),
        (["unsafe@gcg=none.csv"], "no name of a kind"),
        (["harmless={safe}"], "is unsafe; both labels are needed"),
        (["safe={safe}", "safe={safe}", "unsafe={unsafe}"], "'safe prompt 0' is there twice among 'safe' prompts"),
        (["safe={safe}", "unsafe={unsafe}", "unsafe={safe}"], "'safe prompt 0' is among 'safe' and among 'unsafe'"),
        (["safe={safe}", "unsafe={unsafe}", "jail={safe}"], "'safe prompt 0' is among 'safe' and among 'jail'"),
        (["safe={safe}", "unsafe={unsafe}", "jail={blank}"], "row 2: prompt: '', where a prompt is wanted"),
    ],
)
def test_bad_sources(sources: list[str], says: str, tmp_path: Path) -> None:
    for kind, texts in {**TEXTS, "blank": ["a", "", "b"]}.items():
        (tmp_path / f"{kind}.txt").write_text("\n".join(texts))
    files = {kind: tmp_path / f"{kind}.txt" for kind in (*SIDES, "blank")}
    with pytest.raises(InputError, match=says):
        read_prompts([source.format(**files) for source in sources])


def test_an_attack_may_be_a_plain_prompt(tmp_path: Path) -> None:
    """At no strength: that is its control."""
    for kind, texts in TEXTS.items():
        (tmp_path / f"{kind}.txt").write_text("\n".join(texts))
    sources = [f"{kind}={tmp_path}/{kind}.txt" for kind in SIDES]
    found = read_prompts([*sources, f"jail={tmp_path}/unsafe.txt", f"safe_dialect={tmp_path}/safe.txt"])
    scored = [
        {p.prompt for p in found if p.kind == kind and p.use == "score"}
        for kind in ("unsafe", "jail", "safe", "safe_dialect")
    ]
    assert scored[0] == scored[1]  # what models learn from is left out
    assert scored[2] == scored[3]
    assert all(len(each) > 10 for each in scored)
    (tmp_path / "learnt.txt").write_text("\n".join(p.prompt for p in found if p.kind == "unsafe" and p.use != "score"))
    with pytest.raises(InputError, match=r"0 jail ones to score; \d+ more are of groups that models learn from"):
        read_prompts([*sources, f"jail={tmp_path}/learnt.txt"])


def reads_or_says_why(file: Path, kind: str = "") -> None:
    said = ""
    try:
        found = read_prompts([f"{kind}{file}"])
    except InputError as error:
        said = str(error)
    assert said or all(prompt.prompt.strip() for prompt in found)
    assert len(said.splitlines()) <= 1
    assert len(said) <= 600


@FUZZ
@given(st.binary(max_size=200), st.sampled_from([*READERS]), st.sampled_from(["", "safe="]))
@example(b"PAR1" + bytes(20) + b"PAR1", ".parquet", "")
@example(b'{"prompt": "\\ud800", "label": "safe"}', ".jsonl", "")
@example(b"[" * 100_000, ".json", "")
@example(b'{"prompt": "a", "group": 1e999, "label": "safe"}', ".jsonl", "")
def test_any_bytes(tmp_path: Path, content: bytes, suffix: str, kind: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    reads_or_says_why(tmp_path / f"a{suffix}", kind)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["safe", "fit"]),
    lambda of: st.lists(of, max_size=4) | st.dictionaries(st.sampled_from(["prompt", "label", "0"]), of, max_size=3),
    max_leaves=12,
)
COLUMN = st.sampled_from(["prompt", "Prompt", "goal", "label", "split", "group", "answer", "more"])


@FUZZ
@given(JSON | st.lists(st.dictionaries(COLUMN, JSON, max_size=5), max_size=12), st.sampled_from(["", "unsafe="]))
def test_any_json(tmp_path: Path, content: object, kind: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    reads_or_says_why(tmp_path / "a.json", kind)


CELLS = st.none() | st.text(max_size=12) | st.sampled_from(["safe", "unsafe", "fit", "score"])


@FUZZ
@given(
    st.lists(COLUMN, min_size=1, max_size=5, unique=True).flatmap(
        lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), min_size=1, max_size=30)
    ),
    st.sampled_from(["csv", "tsv", "parquet", "jsonl"]),
)
def test_any_table(tmp_path: Path, rows: list[dict[str, str | None]], form: str) -> None:
    file, table = tmp_path / f"a.{form}", pd.DataFrame(rows)
    try:
        {
            "csv": lambda: table.to_csv(file, index=False),
            "tsv": lambda: table.to_csv(file, index=False, sep="\t"),
            "parquet": lambda: table.to_parquet(file),
            "jsonl": lambda: table.to_json(file, orient="records", lines=True),
        }[form]()
    except (ValueError, UnicodeError):  # text that pandas cannot write
        return
    reads_or_says_why(file)
