"""The sampler is exact: every distribution is compared with full enumeration, every string with nltk's parser."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nltk.parse.generate import generate
from oracles import Oracle, cfg, with_substrings
from scipy.stats import chi2_contingency

from tunescope.errors import InputError
from tunescope.rng import Stream
from tunescope.tasks.world.grammar import GrammarFile, Rules, Sampler, read_grammar_file
from tunescope.tasks.world.prompts import Kind, sample_prompts

CPU = torch.device("cpu")
FILES = ("tiny", "laptop", "paper")
USED = ("full", "safe", "unsafe")

# Strings of 3 to 9 symbols; two derivations of one string; a rule listed twice; a symbol on several levels.
UNEVEN = GrammarFile(
    terminals=4,
    start="v",
    variants={
        "deep": {"v": [["a", "b"], ["b", "b", "a"], ["a", 3, "a"]], "a": [["c", "c"], [1, "b"]]},
        "flat": {"v": [["b", "c", 0], [0, 1, 2, 3], ["b", "c", 0]]},
    },
    phrases=[
        {"b": [[0, 1], [2]], "c": [[2], [0, 1], [3]]},
        {"b": [["c"], [2, "c", 2]], "c": [[1]]},
    ],
)
STARTS = [(variant, grammar) for variant in range(2) for grammar in range(2)]


def rows_of(sampler: Sampler, pairs: list[tuple[int, int]], n: int) -> torch.Tensor:
    """Start symbols for n rows that take the (variant, grammar) pairs in turn."""
    index = torch.arange(n) % len(pairs)
    variant, grammar = torch.tensor(pairs).T
    return sampler.start(variant[index], grammar[index])


def derived(sampler: Sampler, start: torch.Tensor, stream: Stream) -> list[tuple[int, ...]]:
    out = sampler.derive(start, stream)
    assert (out.owner.diff() >= 0).all()
    counts = torch.bincount(out.owner, minlength=len(start)).tolist()
    return [tuple(part.tolist()) for part in out.symbols.split(counts)]


@pytest.fixture(scope="module")
def uneven() -> Sampler:
    return Sampler(UNEVEN, CPU)


@pytest.fixture(scope="module")
def samplers() -> dict[str, Sampler]:
    made = {name: Sampler(read_grammar_file(name), CPU) for name in FILES}
    assert all(sampler.variants[: len(USED)] == USED for sampler in made.values())
    return made


@pytest.fixture(scope="module")
def uneven_odds(string_odds):
    """Exact odds of the strings of each of STARTS, and their enumeration checked by nltk's."""
    odds = {}
    for variant, grammar in STARTS:
        rules = UNEVEN.rules(list(UNEVEN.variants)[variant], grammar)
        odds[variant, grammar] = string_odds(rules, "v")
        assert sum(odds[variant, grammar].values()) == 1
        assert set(odds[variant, grammar]) == {tuple(map(int, s)) for s in generate(cfg(rules, "v"))}
    return odds


@pytest.mark.parametrize("pair", STARTS)
def test_derivations_have_the_exact_distribution(uneven, uneven_odds, fit, pair):
    strings = derived(uneven, rows_of(uneven, [pair], 20_000), Stream.named(0, "derive", pair))
    assert fit(Counter(strings), uneven_odds[pair]) > 1e-4


def test_rows_of_a_mixed_batch_follow_their_own_start(uneven, uneven_odds, fit):
    strings = derived(uneven, rows_of(uneven, STARTS, 40_000), Stream.named(0, "derive"))
    for i, pair in enumerate(STARTS):
        assert fit(Counter(strings[i :: len(STARTS)]), uneven_odds[pair]) > 1e-4


def test_rows_are_independent(uneven, fit, uneven_odds):
    pair = (1, 0)
    strings = derived(uneven, rows_of(uneven, [pair], 40_000), Stream.named(1, "pairs"))
    both = {(a, b): p * q for (a, p), (b, q) in itertools.product(uneven_odds[pair].items(), repeat=2)}
    assert fit(Counter(zip(strings[0::2], strings[1::2], strict=True)), both) > 1e-4


@pytest.mark.parametrize("end", [lambda i: [i], lambda i: [i] * (1 + i % 3)], ids=["equal yields", "unequal yields"])
def test_levels_are_independent(end, fit):
    """One symbol per row on every level: bits that two levels shared would show as lost strings."""
    rules: Rules = {"v": [["a"], ["b"]], "a": [["c"], ["d"]], "b": [["e"], ["f"]]}
    rules |= {name: [end(2 * i), end(2 * i + 1)] for i, name in enumerate("cdef")}
    sampler, n = Sampler(GrammarFile(8, "v", {"full": rules}, [{}]), CPU), 4_000
    start, odds = rows_of(sampler, [(0, 0)], n), dict.fromkeys(range(8), 1 / 8)
    assert fit(Counter(s[0] for s in derived(sampler, start, Stream.named(2))), odds) > 1e-4
    windows = sampler.windows(start, torch.ones_like(start), 1, Stream.named(3))
    assert fit(Counter(windows.flatten().tolist()), odds) > 1e-4


@pytest.mark.parametrize("length", [1, 2, 3])
def test_windows_have_the_exact_distribution(uneven, uneven_odds, window_odds, fit, length):
    n, width = 80_000, 4
    found = uneven.windows(
        rows_of(uneven, STARTS, n), torch.full((n,), length), width, Stream.named(0, "windows", length)
    )
    assert (found[:, length:] == -1).all()
    windows = [tuple(row[:length]) for row in found.tolist()]
    for i, pair in enumerate(STARTS):
        assert fit(Counter(windows[i :: len(STARTS)]), window_odds(uneven_odds[pair], length)) > 1e-4


def test_windows_whose_lengths_vary_by_row_have_the_exact_distribution(uneven, uneven_odds, window_odds, fit):
    lengths = torch.arange(60_000) % 3 + 1
    found = uneven.windows(rows_of(uneven, [(0, 0)], len(lengths)), lengths, 3, Stream.named(0, "lengths")).tolist()
    assert all(row[length:] == [-1] * (3 - length) for row, length in zip(found, lengths.tolist(), strict=True))
    for length in (1, 2, 3):
        windows = Counter(tuple(row[:length]) for row in found[length - 1 :: 3])
        assert fit(windows, window_odds(uneven_odds[0, 0], length)) > 1e-4


def test_windows_of_the_tiny_world_have_the_exact_distribution(samplers, string_odds, window_odds, fit):
    sampler, file, n = samplers["tiny"], read_grammar_file("tiny"), 40_000
    pairs = [(v, g) for v in range(len(USED)) for g in range(2)]
    found = sampler.windows(rows_of(sampler, pairs, n), torch.full((n,), 6), 6, Stream.named(0, "tiny")).tolist()
    for i, (v, g) in enumerate(pairs):
        odds = window_odds(string_odds(file.rules(USED[v], g), "v"), 6)
        assert fit(Counter(map(tuple, found[i :: len(pairs)])), odds) > 1e-4


def test_windows_of_the_paper_world_are_slices_of_its_derivations(samplers, fit):
    """Unequal yields, too many strings to enumerate: windows against slices cut here, symbol by symbol."""
    sampler, n, length = samplers["paper"], 4_000, 30
    start = rows_of(sampler, [(USED.index("unsafe"), 0)], n)
    windows = sampler.windows(start, torch.full((n,), length), length, Stream.named(0, "a")).tolist()
    offsets = Stream.named(0, "b").uniform((n,), CPU).tolist()
    strings = derived(sampler, start, Stream.named(0, "c"))
    assert len(set(map(len, strings))) > 3
    slices = [s[(at := int(u * (len(s) - length + 1))) : at + length] for s, u in zip(strings, offsets, strict=True)]
    for place in (0, 14, 29):
        counts = [Counter(row[place] for row in rows) for rows in (windows, slices)]
        symbols = sorted(set(counts[0]) | set(counts[1]))
        assert chi2_contingency([[c[s] for s in symbols] for c in counts]).pvalue > 1e-4


@pytest.mark.parametrize("name", FILES)
def test_nltk_accepts_derivations_and_refuses_corrupted_ones(samplers, name):
    sampler, file, rows = samplers[name], read_grammar_file(name), 2
    for v, g in itertools.product(range(len(USED)), range(sampler.grammars)):
        rules = file.rules(USED[v], g)
        oracle = Oracle(rules, file.start)
        # Every phrase has three symbols of its own grammar, so these two corruptions are certain.
        phrases = {tuple(alt) for alts in file.phrases[g].values() for alt in alts}
        for i, string in enumerate(derived(sampler, rows_of(sampler, [(v, g)], rows), Stream.named(0, name, v, g))):
            assert string in oracle
            assert string[:-1] not in oracle
            at = 3 * (i * 7 % (len(string) // 3))
            wrong = next(s for s in range(file.terminals) if (s, *string[at + 1 : at + 3]) not in phrases)
            assert (*string[:at], wrong, *string[at + 1 :]) not in oracle


@pytest.mark.parametrize("name", FILES)
def test_nltk_finds_every_window_within_a_string(samplers, name):
    """A window is a substring of the language: closed under substrings, the grammar derives it."""
    sampler, file, rows = samplers[name], read_grammar_file(name), 2
    longest = {"tiny": 9, "laptop": 18, "paper": 42}[name]
    for v, g in itertools.product(range(len(USED)), range(sampler.grammars)):
        oracle = Oracle(with_substrings(file.rules(USED[v], g)), f"<{file.start}>")
        lengths = torch.tensor([longest - g, 5 + v])
        found = sampler.windows(rows_of(sampler, [(v, g)], rows), lengths, longest, Stream.named(1, name, v, g))
        for row, length in zip(found.tolist(), lengths.tolist(), strict=True):
            assert tuple(row[:length]) in oracle
            assert row[length:] == [-1] * (longest - length)


def test_the_substring_oracle_knows_exactly_the_substrings(uneven_odds):
    for (variant, grammar), strings in uneven_odds.items():
        oracle = Oracle(with_substrings(UNEVEN.rules(list(UNEVEN.variants)[variant], grammar)), "<v>")
        for candidate in itertools.chain(*(itertools.product(range(4), repeat=k) for k in (1, 2, 3))):
            text = "".join(map(str, candidate))
            assert (candidate in oracle) == any(text in "".join(map(str, s)) for s in strings)


@pytest.mark.parametrize("name", FILES)
def test_no_string_is_of_both_branches(samplers, name):
    sampler, file = samplers[name], read_grammar_file(name)
    branches = ("safe", "unsafe")
    oracles = {branch: Oracle(file.rules(branch, 0), file.start) for branch in branches}
    for branch in branches:
        start = rows_of(sampler, [(sampler.variants.index(branch), 0)], 5)
        for string in derived(sampler, start, Stream.named(2, name, branch)):
            assert [b for b in branches if string in oracles[b]] == [branch]


def test_text_attacks_of_the_paper_world_are_not_safe_text(paper):
    """The parse is exact, and both branches share their phrases, so this is no matter of symbols: 0 of 500 were."""
    rules = read_grammar_file("paper").rules
    safe = [Oracle(with_substrings(rules("safe", g)), "<v>") for g in range(paper.sampler.grammars)]
    prompts = sample_prompts(paper, Kind.JB_CO_TEXT, 60, Stream.named(12), 1.0)
    for row, g in zip(prompts.operand.tolist(), prompts.grammar.tolist(), strict=True):
        assert tuple(s for s in row if s != paper.vocab.symbols) not in safe[g]


def test_sampling_is_reproducible_and_streams_differ(uneven):
    start = rows_of(uneven, STARTS, 50)
    lengths = torch.full((50,), 3)
    first = uneven.windows(start, lengths, 3, Stream.named(0, "a"))
    assert torch.equal(first, uneven.windows(start, lengths, 3, Stream.named(0, "a")))
    assert not torch.equal(first, uneven.windows(start, lengths, 3, Stream.named(0, "b")))


def test_no_rows_give_no_windows(uneven):
    empty = torch.zeros(0, dtype=torch.int64)
    assert uneven.windows(empty, empty, 3, Stream.named(0)).shape == (0, 3)
    assert len(uneven.derive(empty, Stream.named(0)).symbols) == 0


@pytest.mark.parametrize(
    ("upper", "phrases", "where"),
    [
        ({"v": [["a"]], "a": [[0], [0, "a"]]}, [{}], "'a' of the variant 'odd', grammar 0,"),
        ({"v": [["a", 0]], "a": [[1, "b"]], "b": [["v"], [0]]}, [{}], "'v' of the variant 'odd', grammar 0,"),
        ({"v": [["a", 0]], "a": [["a"]]}, [{}], "'a' of the variant 'odd', grammar 0,"),
        ({"v": [["q"]]}, [{"q": [[0]]}, {"q": [["q"]]}], "'q' of the variant 'plain', grammar 1,"),
    ],
)
def test_recursion_is_refused_and_named_as_the_file_spells_it(upper, phrases, where):
    """Phrases belong to every variant: the first of them is named."""
    variants = {"plain": {"v": [[0], [1]]}, "odd": upper}
    with pytest.raises(InputError, match=f"grammar: {where} derives itself; .* must not recurse"):
        Sampler(GrammarFile(2, "v", variants, phrases), CPU)


@st.composite
def grammars(draw) -> Rules:
    """Small grammars without recursion: a symbol's alternatives only hold symbols of lower levels and terminals."""
    rules: Rules = {}
    for level, name in enumerate(("a", "b", "v")):
        below = st.sampled_from([0, 1, 2, *("a", "b")[:level]])
        rules[name] = draw(st.lists(st.lists(below, min_size=1, max_size=3), min_size=1, max_size=3))
    return rules


@given(grammars(), st.integers(0, 2**32))
def test_any_grammar_samples_within_its_enumeration(string_odds, rules, seed):
    sampler = Sampler(GrammarFile(3, "v", {"full": rules}, [{}]), CPU)
    strings = string_odds(rules, "v")
    shortest = min(map(len, strings))
    assert sampler.shortest == {"full": shortest}
    start = rows_of(sampler, [(0, 0)], 8)
    assert set(derived(sampler, start, Stream.named(seed))) <= set(strings)
    lengths = torch.arange(8) % shortest + 1
    found = sampler.windows(start, lengths, shortest, Stream.named(seed)).tolist()
    text = {"".join(map(str, s)) for s in strings}
    for row, length in zip(found, lengths.tolist(), strict=True):
        assert any("".join(map(str, row[:length])) in string for string in text)
        assert row[length:] == [-1] * (shortest - length)
    assert sum(strings.values()) == 1
