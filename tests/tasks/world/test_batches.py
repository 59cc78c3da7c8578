"""Training batches: what is learnt, in which proportions, and which answer is preferred."""

import itertools
from collections import Counter

import pytest
import torch

from tunescope.config import WorldConfig
from tunescope.errors import InputError
from tunescope.rng import Stream
from tunescope.tasks.world.batches import PretrainingBatch, preference_batch, pretraining_batch
from tunescope.tasks.world.grammar import read_grammar_file
from tunescope.tasks.world.prompts import Kind, refusals, render, sample_prompts
from tunescope.tasks.world.vocab import BLANK, CONST, EOS, SEP, STOP
from tunescope.tasks.world.world import World, build_world

WORLDS = ("tiny", "laptop", "paper", "one_slot", "one_stage")
PARTS = ("text", "whole", "first", "last")
MIX_START, MIX_END = (0.5, 0.1, 0.2, 0.2), (0.1, 0.2, 0.3, 0.4)


def changed(world: World, **settings) -> World:
    """The same world under other settings."""
    return build_world(WorldConfig(**{**world.config.model_dump(), **settings}), world.device)


def places(world: World, row: list[int]) -> dict[str, set[int]]:
    """By the docs, which places of a sequence each part learns, found by its separators."""
    sep = row.index(SEP)
    text = set(range(world.slots, sep))
    ends = [i for i, token in enumerate(row) if token in (STOP, EOS)]
    return {
        "text": text,
        "whole": text | set(range(sep + 1, len(row))),
        "first": set(range(sep + 1, ends[0] + 1)),
        "last": set(range(ends[-2] + 1 if len(ends) > 1 else sep + 1, len(row))),
    }


def operators_of(world: World, tokens: torch.Tensor) -> torch.Tensor:
    named = torch.full((len(world.vocab),), -1)
    for op in range(world.config.operators):
        named[world.names[op]] = op
    return named[tokens[:, : world.slots]]


def split(world: World, batch: PretrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.tokens[:, : world.prompt_length], batch.tokens[:, world.prompt_length :]


def read_back(world: World, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Operand symbols, and which are in dialect, from token ids."""
    field = prompt[:, world.slots : -1]
    dialect = field >= world.vocab.first_dialect
    symbols = field - world.vocab.first_symbol - world.vocab.symbols * dialect
    return symbols.masked_fill(field == BLANK, world.vocab.symbols), dialect


def dialect_odds(width: int, breadth: float) -> dict[int, float]:
    """Symbols in dialect: none but for `breadth` of the rows; half of those wholly, half a uniform share, at least one.

    A uniform share of `width` symbols, rounded up as often as its remainder says, is 0 or `width` half as often as
    anything between them; a share of less than one symbol is one.
    """
    odds = dict.fromkeys(range(width + 1), breadth / 2 / width)
    odds[0] = 1 - breadth
    odds[1] += breadth / 4 / width
    odds[width] += breadth / 2 - breadth / 4 / width
    return odds


@pytest.mark.parametrize("name", WORLDS)
def test_each_row_learns_one_part_as_documented(worlds, name):
    world = changed(worlds[name], constant_share=0)
    batch = pretraining_batch(world, 60, Stream.named(0, name), 0.5)
    assert batch.tokens.shape == batch.learn.shape == (60, world.sequence_length)
    seen = set()
    for row, learn in zip(batch.tokens.tolist(), batch.learn, strict=True):
        learnt = set(learn.nonzero().flatten().tolist())
        parts = [part for part, where in places(world, row).items() if where == learnt]
        assert parts
        seen |= set(parts)
    assert seen == set(PARTS)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 1.0])
def test_the_mix_moves_linearly(laptop, progress, fit):
    batch = pretraining_batch(laptop, 4_000, Stream.named(1), progress)
    where = places(laptop, next(row for row in batch.tokens.tolist() if STOP in row))
    learnt = {frozenset(where[part]): part for part in PARTS}
    rows = Counter(learnt[frozenset(row.nonzero().flatten().tolist())] for row in batch.learn)
    odds = [a + progress * (b - a) for a, b in zip(MIX_START, MIX_END, strict=True)]
    assert fit(rows, dict(zip(PARTS, odds, strict=True))) > 1e-4


def test_a_part_without_odds_is_never_learnt(tiny):
    world = changed(tiny, mix_start=(0, 0, 1, 0), mix_end=(0, 0, 0, 1))
    first = pretraining_batch(world, 300, Stream.named(0), 0.0).learn
    last = pretraining_batch(world, 300, Stream.named(0), 1.0).learn
    stage = torch.arange(world.sequence_length) >= world.prompt_length
    assert (first | last == stage).all()
    assert not (first & last).any()


@pytest.mark.parametrize("name", WORLDS)
def test_pretraining_answers_are_right(worlds, name):
    world = changed(worlds[name], constant_share=0.2)
    prompt, answer = split(world, pretraining_batch(world, 300, Stream.named(2, name), 0.5))
    constant = (prompt[:, : world.slots] == CONST).all(dim=1)
    assert 20 < constant.sum() < 100
    assert torch.equal((prompt == CONST).sum(dim=1), constant * world.slots)
    assert torch.equal(answer[constant], refusals(world, int(constant.sum())))
    operators = operators_of(world, prompt[~constant])
    symbols, dialect = read_back(world, prompt[~constant])
    again, expected = render(world, prompt[~constant, : world.slots], operators, symbols, dialect)
    assert torch.equal(prompt[~constant], again)
    assert torch.equal(answer[~constant], expected)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_constant_is_asked_for_at_its_share(tiny, share):
    world, n = changed(tiny, constant_share=share), 10_000
    prompt, _ = split(world, pretraining_batch(world, n, Stream.named(3), 0.5))
    asked = (prompt[:, 0] == CONST).sum().item()
    assert abs(asked - n * share) <= 4 * (n * share * (1 - share)) ** 0.5


def test_pretraining_text_is_of_the_full_variant(tiny, string_odds, window_odds, fit):
    prompt, _ = split(tiny, pretraining_batch(tiny, 40_000, Stream.named(4), 0.5))
    symbols, _ = read_back(tiny, prompt)
    odds = Counter()
    for grammar in range(2):
        strings = string_odds(read_grammar_file("tiny").rules("full", grammar), "v")
        odds.update({window: p / 2 for window, p in window_odds(strings, 6).items()})
    assert fit(Counter(map(tuple, symbols.tolist())), odds) > 1e-4


def test_pretraining_operators_are_uniform_but_for_the_identity(tiny, fit):
    world = changed(tiny, constant_share=0)
    prompt, _ = split(world, pretraining_batch(world, 20_000, Stream.named(5), 0.5))
    stages = operators_of(world, prompt).view(-1, 2, 2)
    odds = Counter(dict.fromkeys(itertools.product(range(5), repeat=2), 0.5 / 25))
    odds.update({(0, op): 0.25 / 5 for op in range(5)})
    odds.update({(op, 0): 0.25 / 5 for op in range(5)})
    for stage in (0, 1):
        assert fit(Counter(map(tuple, stages[:, stage].tolist())), odds) > 1e-4


def test_a_single_slot_is_not_blanked(worlds, fit):
    world = changed(worlds["one_slot"], constant_share=0)
    prompt, _ = split(world, pretraining_batch(world, 3_000, Stream.named(6), 0.5))
    assert fit(Counter(operators_of(world, prompt).flatten().tolist()), dict.fromkeys(range(5), 0.2)) > 1e-4


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_pretraining_has_its_share_of_dialect(laptop, share, fit):
    world = changed(laptop, dialect_share=share)
    prompt, _ = split(world, pretraining_batch(world, 8_000, Stream.named(7), 0.5))
    counts = Counter(read_back(world, prompt)[1].sum(dim=1).tolist())
    assert fit(counts, dialect_odds(world.width, share)) > 1e-4


@pytest.mark.parametrize("name", WORLDS)
def test_rows_chosen_for_dialect_have_some(worlds, name):
    """Of any length, and neither all nor only a few of them wholly."""
    world, n = changed(worlds[name], dialect_share=1, retain_breadth=1, refuse_breadth=1), 1_000
    pretraining, _ = split(world, pretraining_batch(world, n, Stream.named(13, name), 0.5))
    preference = preference_batch(world, n // 2, n // 2, Stream.named(13, name))
    for prompt in (pretraining, preference.prompts.sequence):
        symbols, dialect = read_back(world, prompt)
        lengths = (symbols < world.vocab.symbols).sum(dim=1)
        assert (dialect.sum(dim=1) >= 1).all()
        wholly = (dialect.sum(dim=1) == lengths).double().mean()
        assert (wholly == 1) if world.config.operand[0] == 1 else (0.45 < wholly < 0.75)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("safe", "unsafe"), [(5, 7), (0, 4), (4, 0), (1, 1)])
def test_preferences_are_answers_for_safe_and_refusals_for_unsafe_prompts(worlds, name, safe, unsafe):
    world = worlds[name]
    batch = preference_batch(world, safe, unsafe, Stream.named(8, name))
    prompt = batch.prompts.sequence
    assert prompt.shape == (safe + unsafe, world.prompt_length)
    assert batch.chosen.shape == batch.rejected.shape == (safe + unsafe, world.answer_length)
    assert batch.prompts.positions is batch.prompts.mask is None
    assert batch.safe.tolist() == [True] * safe + [False] * unsafe
    assert (prompt[:, -1] == SEP).all()
    symbols, dialect = read_back(world, prompt)
    operators = operators_of(world, prompt)
    _, answer = render(world, prompt[:, : world.slots], operators, symbols, dialect)
    refusal, is_safe = refusals(world, safe + unsafe), batch.safe[:, None]
    assert torch.equal(batch.chosen, torch.where(is_safe, answer, refusal))
    assert torch.equal(batch.rejected, torch.where(is_safe, refusal, answer))


@pytest.mark.parametrize(("retain", "refuse"), [(0.25, 0.0), (0.0, 0.5), (1.0, 1.0)])
def test_breadths_are_respected(laptop, retain, refuse, fit):
    world = changed(laptop, retain_breadth=retain, refuse_breadth=refuse)
    batch = preference_batch(world, 4_000, 4_000, Stream.named(9))
    dialect = read_back(world, batch.prompts.sequence)[1].sum(dim=1)
    for rows, breadth in ((batch.safe, retain), (~batch.safe, refuse)):
        assert fit(Counter(dialect[rows].tolist()), dialect_odds(world.width, breadth)) > 1e-4


def test_without_breadth_preferences_are_the_plain_prompts(tiny):
    """Safe and unsafe prompts of the same kinds, and of the same draws, as those that are evaluated."""
    world = changed(tiny, retain_breadth=0, refuse_breadth=0)
    stream = Stream.named(10)
    batch = preference_batch(world, 6, 7, stream)
    plain = [sample_prompts(world, kind, n, stream(kind)) for kind, n in ((Kind.SAFE, 6), (Kind.UNSAFE, 7))]
    (safe, unsafe), cat = plain, torch.cat
    assert torch.equal(batch.prompts.sequence, cat([safe.prompt, unsafe.prompt]))
    assert torch.equal(batch.chosen, cat([safe.answer, unsafe.refusal]))
    assert torch.equal(batch.rejected, cat([safe.refusal, unsafe.answer]))


@pytest.mark.parametrize("n", [0, -3])
def test_batches_of_nothing_are_refused(tiny, n):
    message = f"n: {n} rows were asked for; ask for at least 1"
    with pytest.raises(InputError, match=message):
        pretraining_batch(tiny, n, Stream.named(14), 0.5)
    with pytest.raises(InputError, match=message):
        preference_batch(tiny, n, 0, Stream.named(14))
    with pytest.raises(InputError, match="n: -1 rows"):
        preference_batch(tiny, 4, -1, Stream.named(14))


def test_batches_are_the_same_whatever_came_before(laptop):
    stream = Stream.named(11)
    first = [pretraining_batch(laptop, 4, stream("batch", i), 0.3).tokens for i in range(3)]
    again = [pretraining_batch(laptop, 4, stream("batch", i), 0.3).tokens for i in (2, 0, 1)]
    assert all(torch.equal(first[i], b) for i, b in zip((2, 0, 1), again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_progress_changes_what_is_learnt_and_not_what_is_read(laptop):
    one, other = (pretraining_batch(laptop, 200, Stream.named(12), p) for p in (0.0, 1.0))
    assert torch.equal(one.tokens, other.tokens)
    assert not torch.equal(one.learn, other.learn)
