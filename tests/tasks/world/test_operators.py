"""Operators, their names and classes, and the settings that decide them."""

import pytest
import torch
from pydantic import ValidationError

from tunescope.config import WorldConfig
from tunescope.errors import InputError
from tunescope.tasks.world.operators import (
    SAFE_BRANCH,
    UNSAFE_BRANCH,
    Choices,
    bijections,
    context_operators,
    unsafe_table,
)
from tunescope.tasks.world.vocab import SPECIALS, Vocab
from tunescope.tasks.world.world import build_world

WORLDS = ("tiny", "laptop", "paper")


@pytest.mark.parametrize("name", WORLDS)
def test_operators_are_distinct_permutations_that_leave_the_blank_alone(worlds, name):
    world = worlds[name]
    maps, symbols = world.maps, world.vocab.symbols
    assert maps.shape == (world.config.operators, symbols + 1)
    assert (maps.sort(dim=1).values == torch.arange(symbols + 1)).all()
    assert (maps[0] == torch.arange(symbols + 1)).all()
    assert (maps[:, symbols] == symbols).all()
    assert len(maps.unique(dim=0)) == len(maps)


@pytest.mark.parametrize("name", WORLDS)
def test_operators_are_not_each_others_inverse(worlds, name):
    """Otherwise a stage of an unsafe prompt could leave its operand as it is."""
    maps = worlds[name].maps[1:]
    composed = maps[None].expand(len(maps), -1, -1).gather(2, maps[:, None].expand(-1, len(maps), -1))
    assert (composed != worlds[name].maps[0]).any(dim=2).all()


def test_the_bijections_come_from_the_seed_of_the_world_alone():
    config = WorldConfig()
    assert torch.equal(bijections(config, 30), bijections(config, 30))
    assert not torch.equal(bijections(config, 30), bijections(config.model_copy(update={"seed": 1}), 30))
    other = config.model_copy(update={"aliases": (), "slots": 3, "dialect_share": 0.9, "operand": (3, 4)})
    assert torch.equal(bijections(config, 30), bijections(other, 30))


def test_the_bijections_are_the_same_on_every_machine():
    assert bijections(WorldConfig(), 30)[1, :8].tolist() == [15, 12, 8, 10, 20, 0, 23, 6]


@pytest.mark.parametrize("name", WORLDS)
def test_classes_are_those_of_the_config(worlds, name):
    config, table = worlds[name].config, unsafe_table(worlds[name].config)
    context = context_operators(config)
    for grammar, (safe, unsafe) in enumerate(zip(config.safe, config.unsafe, strict=True)):
        for op in range(config.operators):
            on_safe_text, on_unsafe_text = table[grammar, :, op].tolist()
            assert (on_safe_text, on_unsafe_text) == (op in unsafe, op not in safe)
            assert (op in context[grammar]) == (on_safe_text != on_unsafe_text)


@pytest.mark.parametrize("name", WORLDS)
def test_choices_are_the_operators_besides_the_identity(worlds, name):
    world, config = worlds[name], worlds[name].config

    def listed(choices: Choices, grammar: int, branch: int) -> set[int]:
        options = choices.table[grammar, branch, : choices.counts[grammar, branch]].tolist()
        assert len(set(options)) == len(options) > 0
        return set(options)

    for grammar, (safe, unsafe) in enumerate(zip(config.safe, config.unsafe, strict=True)):
        context = set(range(config.operators)) - set(safe) - set(unsafe)
        assert listed(world.safe_choices, grammar, SAFE_BRANCH) == (set(safe) | context) - {0}
        assert listed(world.safe_choices, grammar, UNSAFE_BRANCH) == set(safe) - {0}
        assert listed(world.unsafe_choices, grammar, SAFE_BRANCH) == set(unsafe)
        assert listed(world.unsafe_choices, grammar, UNSAFE_BRANCH) == set(unsafe) | context
        for branch in (SAFE_BRANCH, UNSAFE_BRANCH):
            assert listed(world.context_choices, grammar, branch) == context


@pytest.mark.parametrize("name", WORLDS)
def test_every_task_token_names_one_operator(worlds, name):
    world = worlds[name]
    owner = {}
    for op in range(world.config.operators):
        names = world.names[op, : world.name_counts[op]].tolist()
        assert len(names) == 1 + world.config.aliases.count(op)
        owner |= dict.fromkeys(names, op)
    tasks = range(world.vocab.first_task, world.vocab.first_symbol)
    assert sorted(owner) == list(tasks)
    words = world.vocab.words
    assert all(words[token].rstrip("'") == f"op{op}" for token, op in owner.items())


def test_the_paper_world_has_the_reference_classes(paper):
    """Ten bijections and six aliases: two each of the identity, operator 1 and operator 2."""
    assert paper.vocab.first_symbol - paper.vocab.first_task == 16
    assert paper.name_counts.tolist() == [3, 3, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [set(s) for s in paper.config.safe] == [{0, 3, 4}, {0, 1, 2}, {0, 6, 7}, {0, 4, 7}]
    assert [set(s) for s in paper.config.unsafe] == [{1, 2}, {3, 4}, {8, 9}, {1, 5}]
    assert context_operators(paper.config)[0] == [5, 6, 7, 8, 9]


def test_words_are_one_to_one_with_token_ids():
    vocab = Vocab(operators=3, aliases=(1, 0, 1), symbols=2)
    tasks = ("op0", "op1", "op2", "op1'", "op0'", "op1''")
    assert vocab.words == (*SPECIALS, *tasks, "s0", "s1", "d0", "d1")
    assert len(vocab) == len(vocab.words) == len(set(vocab.words))
    starts = (vocab.first_task, vocab.first_symbol, vocab.first_dialect)
    assert [vocab.words[i] for i in starts] == ["op0", "s0", "d0"]
    assert vocab.text([7, 13, 16]) == "op0 s0 d1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operand": (0, 5)}, r"operand: \[0, 5\]"),
        ({"operand": (7, 6)}, r"operand: \[7, 6\]"),
        ({"safe": ((0, 3),)}, r"safe and unsafe: .* got 1 and 4"),
        ({"safe": ((0, 1), (0, 1)), "unsafe": ((1, 2), (3,))}, r"safe, unsafe: operators \[1\] are both in grammar 0"),
        ({"safe": ((0, 1), (1, 2)), "unsafe": ((2,), (3,))}, r"safe: grammar 1 must list operator 0"),
        ({"safe": ((0, 1), (0,)), "unsafe": ((2,), (3,))}, r"safe, unsafe: grammar 1 needs an operator besides"),
        ({"safe": ((0, 0), (0, 1)), "unsafe": ((2,), (3,))}, r"safe, unsafe: grammar 0 needs an operator besides"),
        ({"safe": ((0, 1), (0, 1)), "unsafe": ((2,), ())}, r"safe, unsafe: grammar 1 needs an operator besides"),
        ({"aliases": (0, 10)}, r"aliases: operators are 0 \.\. 9, got \[.*10\]"),
        ({"aliases": (-1,)}, r"aliases: operators are 0 \.\. 9, got \[-1"),
        ({"operators": 9}, r"operators are 0 \.\. 8, got \[.*9\]"),
        ({"operators": 1}, r"operators\n.*input_value=1"),
        ({"mix_start": (0.5, 0.5, 0.5, 0.5)}, r"mix_start: .* got \[0\.5, 0\.5, 0\.5, 0\.5\]"),
        ({"mix_end": (0.1, 0.2, 0.3, 0.3)}, r"mix_end: .* got \[0\.1, 0\.2, 0\.3, 0\.3\]"),
        ({"mix_end": (1.2, -0.2, 0, 0)}, r"mix_end\.0\n.*input_value=1\.2"),
        ({"dialect_share": 1.5}, r"dialect_share\n.*input_value=1\.5"),
        ({"identity_share": float("nan")}, r"identity_share\n.*input_value=nan"),
        ({"stages": 0}, r"stages\n.*input_value=0"),
        ({"grammar": "english"}, r"grammar\n.*'tiny'.*input_value='english'"),
        ({"operatorz": 3}, r"operatorz\n.*unknown key. Choose from: .*operators"),
    ],
)
def test_settings_that_make_no_world_are_named_with_their_value(settings, message):
    with pytest.raises(ValidationError, match=message):
        WorldConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grammar": "tiny"}, r"world\.safe: 4 entries, but the tiny grammar file has 2 grammars"),
        ({"operand": (10, 19)}, r"world\.operand: \[10, 19\]: the longest must be at most 18, .* the laptop grammars"),
        (
            {"operators": 3, "aliases": (), "safe": ((0, 1),) * 4, "unsafe": ((2,),) * 4},
            r"world\.safe, world\.unsafe: every grammar needs a context-dependent operator",
        ),
    ],
)
def test_worlds_that_do_not_fit_their_grammar_file_are_refused(settings, message, cpu):
    with pytest.raises(InputError, match=message):
        build_world(WorldConfig(**settings), cpu)


def test_a_setting_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        WorldConfig().slots = 3
