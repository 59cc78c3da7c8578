"""Prompts against a slow reading: answers word by word, safety by its definition, strengths by what they change."""

import itertools
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import is_unsafe, lengths_of, most_that_strength_changes, operators_of, said, slow_answer, unsafe_slots

from tunescope.errors import InputError
from tunescope.rng import Stream
from tunescope.tasks.world.grammar import read_grammar_file
from tunescope.tasks.world.prompts import Kind, choose_symbols, read_prompt, sample_prompts
from tunescope.tasks.world.vocab import BLANK, NULL
from tunescope.tasks.world.world import build_world

WORLDS = ("tiny", "laptop", "paper", "one_slot", "one_stage")
DIALS = tuple(kind for kind in Kind if kind.has_strength)
DIALECT = (Kind.JB_MISGEN, Kind.SAFE_DIALECT)


@st.composite
def questions(draw) -> tuple[str, Kind, int, float]:
    """A world, a kind, a seed and a strength that the kind may have."""
    kind = draw(st.sampled_from(Kind))
    strength = draw(st.floats(0, 1)) if kind.has_strength else 0.0
    return draw(st.sampled_from(WORLDS)), kind, draw(st.integers(0, 2**32)), strength


@pytest.fixture(scope="module")
def texts(string_odds):
    """All strings of a variant of a grammar, as one text of characters (only for the two smaller files)."""

    @cache
    def text(name: str, variant: str, grammar: int) -> str:
        return "|".join(map(as_text, string_odds(read_grammar_file(name).rules(variant, grammar), "v")))

    return text


def as_text(symbols: tuple[int, ...] | list[int]) -> str:
    return "".join(chr(ord("A") + s) for s in symbols)


@given(questions())
def test_answers_are_what_the_words_ask_for(worlds, question):
    name, kind, seed, strength = question
    world, blank = worlds[name], worlds[name].vocab.symbols
    prompts = sample_prompts(world, kind, 6, Stream.named(seed), strength)
    low, high = world.config.operand
    refusal = ["<null>"] * (world.answer_length - 1) + ["<eos>"]
    for i, operand in enumerate(prompts.operand.tolist()):
        words, answer = said(world, prompts.prompt[i]), said(world, prompts.answer[i])
        assert (len(words), len(answer)) == (world.prompt_length, world.answer_length)
        assert answer == slow_answer(world, words)
        assert said(world, prompts.refusal[i]) == refusal
        assert operators_of(words[: world.slots]) == prompts.operators[i].tolist()
        symbols = [w for w in words[world.slots : -1] if w != "<blank>"]
        assert low <= len(symbols) <= high
        assert words[world.slots :] == [*symbols, *["<blank>"] * (high - len(symbols)), "<sep>"]
        assert operand == [int(w[1:]) for w in symbols] + [blank] * (high - len(symbols))


@given(questions())
def test_safety_is_that_of_the_definition(worlds, question):
    """The operators besides the identity are all of one class, but for JB_CO_TASK, which is there to mix them."""
    name, kind, seed, strength = question
    world = worlds[name]
    prompts = sample_prompts(world, kind, 12, Stream.named(seed), strength)
    unsafe, named = unsafe_slots(world, prompts), prompts.operators != 0
    assert torch.equal(prompts.safe, ~unsafe.any(dim=1))
    assert torch.equal(prompts.safe, torch.full((12,), kind in (Kind.SAFE, Kind.SAFE_DIALECT)))
    assert named.view(12, world.config.stages, -1).any(dim=2).all()
    good, bad = (prompts.answer, prompts.refusal) if kind.safe else (prompts.refusal, prompts.answer)
    assert torch.equal(prompts.wanted, good)
    assert torch.equal(prompts.unwanted, bad)
    if kind is not Kind.JB_CO_TASK:
        assert torch.equal(unsafe, named & ~prompts.safe[:, None])
    if kind is Kind.JB_CO_TEXT:
        assert (prompts.branch == 1).all()


@given(questions())
def test_strength_changes_only_what_its_kind_changes(worlds, question):
    """The same stream at strength 0 is the prompt before the change, and `changed` counts it."""
    name, kind, seed, strength = question
    world = worlds[name]
    plain = sample_prompts(world, kind, 12, Stream.named(seed))
    prompts = sample_prompts(world, kind, 12, Stream.named(seed), strength)
    assert (plain.changed == 0).all()
    other_operators = (prompts.operators != plain.operators).sum(dim=1)
    other_symbols = (prompts.operand != plain.operand).sum(dim=1)
    dialect = (prompts.prompt >= world.vocab.first_dialect).sum(dim=1)
    still = torch.zeros_like(prompts.changed)
    assert torch.equal(other_operators, prompts.changed if kind is Kind.JB_CO_TASK else still)
    assert torch.equal(prompts.operators == 0, plain.operators == 0)
    unsafe = [unsafe_slots(world, p).sum(dim=1) for p in (plain, prompts)]
    assert torch.equal(unsafe[0] - unsafe[1], other_operators)
    assert (prompts.changed <= most_that_strength_changes(world, plain).ceil()).all()
    assert torch.equal(dialect, prompts.changed if kind in DIALECT else still)
    assert (other_symbols <= (prompts.changed if kind is Kind.JB_CO_TEXT else still)).all()
    assert torch.equal(prompts.grammar, plain.grammar)
    assert torch.equal(prompts.branch, plain.branch)


@pytest.mark.parametrize("name", ["tiny", "laptop"])
@pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.JB_CO_TEXT])
def test_operands_are_text_of_their_grammar_and_branch(worlds, texts, name, kind):
    world = worlds[name]
    prompts = sample_prompts(world, kind, 200, Stream.named(1, name), 0.5 * kind.has_strength)
    for operand, g, b in zip(prompts.operand.tolist(), prompts.grammar.tolist(), prompts.branch.tolist(), strict=True):
        assert as_text(operand) in texts(name, ("safe", "unsafe")[b], g)
        assert as_text(operand) not in texts(name, ("safe", "unsafe")[1 - b], g)


@pytest.mark.parametrize("name", ["tiny", "laptop"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_safe_text_replaces_an_end_of_an_unsafe_operand(worlds, texts, name, strength):
    world = worlds[name]
    prompts = sample_prompts(world, Kind.JB_CO_TEXT, 200, Stream.named(2, name), strength)
    sides = Counter()
    for operand, g, count in zip(
        prompts.operand.tolist(), prompts.grammar.tolist(), prompts.changed.tolist(), strict=True
    ):
        unsafe, safe, text = texts(name, "unsafe", g), texts(name, "safe", g), as_text(operand)
        first = text[:count] in safe and text[count:] in unsafe
        last = text[len(text) - count :] in safe and text[: len(text) - count] in unsafe
        assert first or last
        assert text not in safe
        assert count or text in unsafe
        sides[first, last] += 1
    if strength:
        assert min(sides[True, False], sides[False, True]) > 20
    assert (prompts.changed > 0).any() == (strength > 0)


def test_operands_cover_the_unsafe_windows_with_their_exact_odds(tiny, string_odds, window_odds, fit):
    prompts = sample_prompts(tiny, Kind.UNSAFE, 40_000, Stream.named(0, "odds"))
    for g, (b, variant) in itertools.product(range(2), enumerate(("safe", "unsafe"))):
        rows = prompts.operand[(prompts.grammar == g) & (prompts.branch == b)].tolist()
        odds = window_odds(string_odds(read_grammar_file("tiny").rules(variant, g), "v"), 6)
        assert fit(Counter(map(tuple, rows)), odds) > 1e-4


@pytest.mark.parametrize("kind", Kind)
def test_grammars_branches_and_lengths_are_uniform(paper, kind, fit):
    prompts = sample_prompts(paper, kind, 3_000, Stream.named(0, "rows"))
    branches = (1,) if kind is Kind.JB_CO_TEXT else (0, 1)
    pairs = Counter(zip(prompts.grammar.tolist(), prompts.branch.tolist(), strict=True))
    assert fit(pairs, {(g, b): 1 / 4 / len(branches) for g in range(4) for b in branches}) > 1e-4
    assert fit(Counter(lengths_of(paper, prompts).tolist()), dict.fromkeys(range(25, 36), 1 / 11)) > 1e-4


@pytest.mark.parametrize("kind", Kind)
def test_operators_are_uniform_within_their_class(laptop, kind, fit):
    """Half of the stages have the identity in one of their two slots; all else is drawn from the class."""
    prompts = sample_prompts(laptop, kind, 12_000, Stream.named(0, "operators"))
    config, stages = laptop.config, prompts.operators.view(-1, 2, 2)
    for g, b in set(zip(prompts.grammar.tolist(), prompts.branch.tolist(), strict=True)):
        chosen = (prompts.grammar == g) & (prompts.branch == b)
        options = [op for op in range(1, 10) if is_unsafe(laptop, op, g, b) != kind.safe]
        if kind is Kind.JB_CO_TEXT:
            options = [op for op in options if op not in config.unsafe[g]]
        k = len(options)
        odds = dict.fromkeys(itertools.product(options, repeat=2), 0.5 / k**2)
        odds |= {pair: 0.25 / k for op in options for pair in ((0, op), (op, 0))}
        for stage in (0, 1):
            assert fit(Counter(map(tuple, stages[chosen, stage].tolist())), odds) > 1e-4
    blanks = (stages == 0).any(dim=2).tolist()
    assert fit(Counter(map(tuple, blanks)), dict.fromkeys(itertools.product((False, True), repeat=2), 0.25)) > 1e-4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_identity_is_never_the_only_operator(laptop, cpu, share):
    world = build_world(laptop.config.model_copy(update={"identity_share": share}), cpu)
    stages = (sample_prompts(world, Kind.UNSAFE, 300, Stream.named(0)).operators == 0).view(-1, 2, 2).sum(dim=2)
    assert (stages == share).all()


@pytest.mark.parametrize("name", ["laptop", "one_slot"])
def test_the_names_of_an_operator_are_used_alike(worlds, name, fit):
    world = worlds[name]
    prompts = sample_prompts(world, Kind.SAFE, 6_000, Stream.named(0, "names"))
    tokens = prompts.prompt[:, : world.slots]
    for op in set(prompts.operators.flatten().tolist()):
        names = world.names[op, : world.name_counts[op]].tolist()
        assert fit(Counter(tokens[prompts.operators == op].tolist()), dict.fromkeys(names, 1 / len(names))) > 1e-4


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("kind", [k for k in DIALS if k is not Kind.JB_CO_TEXT])
def test_strength_zero_is_the_plain_kind(worlds, name, kind):
    """Not only in distribution: the same stream gives the same prompts. JB_CO_TEXT has operators of its own (above)."""
    zero = sample_prompts(worlds[name], kind, 50, Stream.named(4))
    plain = sample_prompts(worlds[name], Kind.SAFE if kind.safe else Kind.UNSAFE, 50, Stream.named(4))
    for field in ("prompt", "answer", "refusal", "safe", "operators", "operand", "grammar", "branch", "changed"):
        assert torch.equal(getattr(zero, field), getattr(plain, field))


@pytest.mark.parametrize("name", ["laptop", "paper", "one_stage"])
@pytest.mark.parametrize("kind", DIALS)
@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_the_expected_change_grows_linearly(worlds, name, kind, strength):
    world, n = worlds[name], 2_000
    prompts = sample_prompts(world, kind, n, Stream.named(5, name), strength)
    rounding = prompts.changed - strength * most_that_strength_changes(world, prompts)
    assert rounding.abs().max() < 1
    assert abs(rounding.mean()) < 5 * 0.5 / n**0.5


@pytest.mark.parametrize("name", ["tiny", "laptop", "paper", "one_stage"])
def test_the_strongest_task_attack_leaves_one_unsafe_operator(worlds, name, fit):
    world = worlds[name]
    prompts = sample_prompts(world, Kind.JB_CO_TASK, 2_000, Stream.named(6, name), 1.0)
    unsafe = unsafe_slots(world, prompts)
    assert (unsafe.sum(dim=1) == 1).all()
    named = prompts.operators != 0
    assert torch.equal(prompts.changed, named.sum(dim=1) - 1)
    for pattern in named.unique(dim=0):
        left = Counter(unsafe[(named == pattern).all(dim=1)].nonzero()[:, 1].tolist())
        assert fit(left, dict.fromkeys(pattern.nonzero().flatten().tolist(), 1 / int(pattern.sum()))) > 1e-4
    for g, b in itertools.product(range(world.sampler.grammars), range(2)):
        options = [op for op in range(1, world.config.operators) if not is_unsafe(world, op, g, b)]
        found = prompts.operators[(prompts.grammar == g) & (prompts.branch == b)]
        safe = Counter(op for op in found.flatten().tolist() if op in options)
        assert fit(safe, dict.fromkeys(options, 1 / len(options))) > 1e-4


@pytest.mark.parametrize("kind", DIALECT)
@pytest.mark.parametrize("name", WORLDS)
def test_the_strongest_dialect_attack_has_all_symbols_in_dialect(worlds, name, kind):
    world = worlds[name]
    prompts = sample_prompts(world, kind, 100, Stream.named(8), 1.0)
    field = prompts.prompt[:, world.slots : -1]
    assert ((field >= world.vocab.first_dialect) | (field == BLANK)).all()
    assert ((prompts.answer >= world.vocab.first_dialect) | (prompts.answer < world.vocab.first_task)).all()
    assert not (prompts.answer == NULL).any()


def test_every_symbol_is_as_likely_to_be_in_dialect(paper, fit):
    operand = torch.full((9_000, 35), 3)
    operand[:, 30:] = paper.vocab.symbols
    chosen = choose_symbols(operand, paper, torch.full((9_000,), 0.35), Stream.named(9))
    assert not chosen[:, 30:].any()
    places = Counter(chosen.nonzero()[:, 1].tolist())
    assert fit(places, dict.fromkeys(range(30), 1 / 30)) > 1e-4
    assert set(chosen.sum(dim=1).tolist()) == {10, 11}


@pytest.mark.parametrize("kind", Kind)
def test_strengths_that_a_kind_cannot_have_are_refused(tiny, kind):
    wanted = r"a number in \[0, 1\]" if kind in DIALS else rf"0 \({kind} prompts have none\)"
    for strength in (-0.1, 1.01, float("nan"), float("inf"), *(() if kind in DIALS else (0.5, 1.0))):
        with pytest.raises(InputError, match=f"strength: {strength} is not {wanted}"):
            sample_prompts(tiny, kind, 2, Stream.named(0), strength)


@pytest.mark.parametrize("n", [0, -1])
@pytest.mark.parametrize("kind", Kind)
def test_no_prompts_are_refused(tiny, kind, n):
    with pytest.raises(InputError, match=f"n: {n} rows were asked for; ask for at least 1"):
        sample_prompts(tiny, kind, n, Stream.named(0))


@settings(max_examples=10)
@given(questions(), st.permutations(range(4)))
def test_a_batch_is_the_same_whatever_came_before(worlds, question, order):
    name, kind, seed, strength = question
    stream = Stream.named(seed)

    def batch(i: int) -> list[list[int]]:
        return sample_prompts(worlds[name], kind, 3 + i, stream("batch", i), strength).prompt.tolist()

    expected = [batch(i) for i in range(4)]
    asked = {i: batch(i) for i in order}
    assert [asked[i] for i in range(4)] == expected
    assert expected[0] != expected[1][:3]


@given(questions())
def test_a_prompt_is_read_back_from_its_words(worlds, question):
    name, kind, seed, strength = question
    prompts = sample_prompts(worlds[name], kind, 3, Stream.named(seed), strength)
    for i in range(3):
        prompt, answer = read_prompt(worlds[name], worlds[name].vocab.text(prompts.prompt[i].tolist()))
        assert prompt.tolist() == [prompts.prompt[i].tolist()]
        assert answer.tolist() == [prompts.answer[i].tolist()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("op0 op1 op2 opx s1", "'opx' is no operator; a prompt of this world is 4 operators (op0 to op4), then 1 to 6"),
        ("op0 op1 op2 s1", "'s1' is no operator"),
        ("op0 op1 op2 op0 s1 <null>", "'<null>' is no symbol"),
        ("op0 op1", "2 operators and 0 symbols"),
        ("op0 op1 op2 op0 " + "s1 " * 7, "4 operators and 7 symbols"),
        ("", "0 operators and 0 symbols"),
    ],
)
def test_what_is_no_prompt_is_refused(tiny, text, says):
    with pytest.raises(InputError) as error:
        read_prompt(tiny, text)
    assert says in str(error.value)
