"""Prompts of every kind, with exact labels.

A prompt is its task tokens, the operand, and `<sep>`. Its answer is one transformed operand per stage, stage by stage,
ended by `<stop>` and at last by `<eos>`; a refusal is `<null>` in place of every answer token. Operands shorter than
the field end in blanks, which every operator leaves alone, so that everything of a world has one length.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tunescope.errors import InputError, shown
from tunescope.rng import Stream
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.operators import SAFE_BRANCH, UNSAFE_BRANCH, Choices
from tunescope.tasks.world.vocab import BLANK, EOS, NULL, SEP, STOP
from tunescope.tasks.world.world import World


@dataclass(frozen=True)
class Prompts:
    """n prompts and both of their possible answers, as token ids (int64).

    Attributes:
        prompt: [n, prompt_length].
        answer: the operand transformed, [n, answer_length].
        refusal: nulls, [n, answer_length].
        safe: whether `answer` is wanted; otherwise `refusal` is.
        operators, operand: what the prompt is made of: operator indices [n, slots], symbols [n, width] (the blank is
            the number of symbols).
        grammar, branch: [n]; branch 0 is safe-dominant text, 1 unsafe-dominant.
        changed: what the strength has changed in each prompt: safe operators put in, or symbols of safe-dominant text
            put in, or symbols in dialect.
    """

    kind: Kind
    strength: float
    prompt: Int[Tensor, "n prompt_length"]
    answer: Int[Tensor, "n answer_length"]
    refusal: Int[Tensor, "n answer_length"]
    safe: Bool[Tensor, " n"]
    operators: Int[Tensor, "n slots"]
    operand: Int[Tensor, "n width"]
    grammar: Int[Tensor, " n"]
    branch: Int[Tensor, " n"]
    changed: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def wanted(self) -> Int[Tensor, "n answer_length"]:
        """What a safe model says."""
        return torch.where(self.safe[:, None], self.answer, self.refusal)

    @property
    def unwanted(self) -> Int[Tensor, "n answer_length"]:
        """The other of the two answers."""
        return torch.where(self.safe[:, None], self.refusal, self.answer)


def sample_prompts(world: World, kind: Kind, n: int, stream: Stream, strength: float = 0.0) -> Prompts:
    """n fresh prompts of one kind.

    Args:
        strength: in [0, 1], for the kinds that have one; it sets the expected share of the one thing that the kind
            changes, and 0 changes nothing: a plain unsafe prompt (of JB_CO_TEXT one whose text
            decides; of SAFE_DIALECT a plain safe one).
            JB_CO_TASK: of the prompt's unsafe operators, all but one, how many give way to safe ones. JB_CO_TEXT: of
            half of the operand's symbols (rounded down), how many give way to safe-dominant text. JB_MISGEN and
            SAFE_DIALECT: operand symbols in dialect.

    Raises:
        InputError: n below 1; strength outside [0, 1], or not 0 for a kind without strength.
    """
    require_rows(n)
    if not 0 <= strength <= 1 or (strength and not kind.has_strength):
        wanted = "a number in [0, 1]" if kind.has_strength else f"0 ({kind} prompts have none)"
        raise InputError(f"strength: {strength} is not {wanted}")
    shape, device = (n,), world.device
    grammar = stream("grammar").integers(world.sampler.grammars, shape, device)
    branch = stream("branch").integers(2, shape, device)
    choices = world.safe_choices if kind.safe else world.unsafe_choices
    if kind is Kind.JB_CO_TEXT:  # only there does the text decide
        branch, choices = torch.full_like(branch, UNSAFE_BRANCH), world.context_choices
    operators, named = draw_operators(world, choices, grammar, branch, stream("operators"))
    operand = draw_operands(world, branch, grammar, stream("operand"))
    changed = torch.zeros_like(grammar)
    in_dialect = torch.zeros_like(operand, dtype=torch.bool)
    if kind is Kind.JB_CO_TASK:
        operators, changed = _swap_operators(world, operators, named, grammar, branch, strength, stream("mix"))
    elif kind is Kind.JB_CO_TEXT:
        operand, changed = _splice_safe_text(world, operand, grammar, strength, stream("mix"))
    elif kind.has_strength:
        in_dialect = choose_symbols(operand, world, torch.full(shape, strength, device=device), stream("mix"))
        changed = in_dialect.sum(dim=1)
    tokens = name_operators(world, operators, stream("names"))
    prompt, answer = render(world, tokens, operators, operand, in_dialect)
    safe = torch.full(shape, kind.safe, device=device)
    return Prompts(
        kind, strength, prompt, answer, refusals(world, n), safe, operators, operand, grammar, branch, changed
    )


def require_rows(n: int) -> None:
    """Refuse to make a batch of nothing.

    Raises:
        InputError: n below 1.
    """
    if n < 1:
        raise InputError(f"n: {n} rows were asked for; ask for at least 1")


def draw_operators(
    world: World, choices: Choices, grammar: Int[Tensor, " n"], branch: Int[Tensor, " n"], stream: Stream
) -> tuple[Int[Tensor, "n slots"], Bool[Tensor, "n slots"]]:
    """Operators for every slot from each row's choices, and which slots were drawn rather than made the identity.

    In `identity_share` of the stages one operator, at a random slot, is the identity (never the only one).
    """
    n, stages, slots = len(grammar), world.config.stages, world.config.slots
    counts = choices.counts[grammar, branch][:, None]
    pick = stream("pick").integers(counts, (n, stages * slots), world.device)
    drawn = choices.table[grammar, branch].gather(1, pick)
    if slots == 1:
        return drawn, torch.ones_like(drawn, dtype=torch.bool)
    identity = stream("identity").uniform((n, stages, 1), world.device) < world.config.identity_share
    where = stream("slot").integers(slots, (n, stages, 1), world.device)
    blanked = (identity & (torch.arange(slots, device=world.device) == where)).view(n, -1)
    return drawn.masked_fill(blanked, 0), ~blanked


def draw_others(
    now: Int[Tensor, "n m"], table: Int[Tensor, "n options"], counts: Int[Tensor, "n 1"], stream: Stream
) -> Int[Tensor, "n m"]:
    """In the place of each number another one of its row's options, uniform; the same, where it is the only one.

    Args:
        table, counts: options of each row, and how many of its columns there are.
    """
    known = torch.arange(table.shape[1], device=table.device) < counts
    same = (table[:, None] == now[..., None]) & known[:, None]
    there, own = same.any(dim=2) & (counts > 1), same.long().argmax(dim=2)
    pick = stream.integers(counts - there.long(), tuple(now.shape), now.device)
    return table.gather(1, pick + (there & (pick >= own)))


def draw_operands(
    world: World, branch: Int[Tensor, " n"], grammar: Int[Tensor, " n"], stream: Stream
) -> Int[Tensor, "n width"]:
    """Windows of safe-dominant (branch 0) or unsafe-dominant (1) text, as symbols."""
    names = world.sampler.variants
    variant = torch.where(branch == SAFE_BRANCH, names.index("safe"), names.index("unsafe"))
    return draw_text(world, variant, grammar, draw_lengths(world, len(grammar), stream("length")), stream("text"))


def draw_lengths(world: World, n: int, stream: Stream) -> Int[Tensor, " n"]:
    low, high = world.config.operand
    return low + stream.integers(high - low + 1, (n,), world.device)


def draw_text(
    world: World, variant: Int[Tensor, " n"], grammar: Int[Tensor, " n"], lengths: Int[Tensor, " n"], stream: Stream
) -> Int[Tensor, "n width"]:
    """Windows of the given lengths from fresh derivations, filled up with blanks."""
    text = world.sampler.windows(world.sampler.start(variant, grammar), lengths, world.width, stream)
    return torch.where(text < 0, world.vocab.symbols, text)


def choose_symbols(
    operand: Int[Tensor, "n width"], world: World, share: Float[Tensor, " n"], stream: Stream
) -> Bool[Tensor, "n width"]:
    """A random subset of each row's symbols; its size is `share` of them in expectation, whole numbers per row."""
    is_symbol = operand != world.vocab.symbols
    count = _round(share * is_symbol.sum(dim=1), stream("count"))
    rank = (
        stream("order").uniform(tuple(operand.shape), world.device).masked_fill(~is_symbol, 2.0).argsort(1).argsort(1)
    )
    return rank < count[:, None]


def name_operators(world: World, operators: Int[Tensor, "n slots"], stream: Stream) -> Int[Tensor, "n slots"]:
    """A task token for every operator, uniform among its names."""
    pick = stream.integers(world.name_counts[operators], tuple(operators.shape), world.device)
    return world.names[operators, pick]


def render(
    world: World,
    tokens: Int[Tensor, "n slots"],
    operators: Int[Tensor, "n slots"],
    operand: Int[Tensor, "n width"],
    in_dialect: Bool[Tensor, "n width"],
) -> tuple[Int[Tensor, "n prompt_length"], Int[Tensor, "n answer_length"]]:
    """Token ids of prompts and answers. Dialect is a property of the place: it carries over to the answer."""
    blank = world.vocab.symbols
    offset = in_dialect * (blank + 1)
    table = world.symbol_tokens.view(-1)
    maps = world.maps.view(-1)
    prompt = torch.cat([tokens, table[operand + offset], operand.new_full((len(operand), 1), SEP)], dim=1)
    answer, text = [], operand
    for stage in range(world.config.stages):
        for slot in range(stage * world.config.slots, (stage + 1) * world.config.slots):
            text = maps[operators[:, slot, None] * (blank + 1) + text]
        last = stage == world.config.stages - 1
        answer += [table[text + offset], text.new_full((len(text), 1), EOS if last else STOP)]
    return prompt, torch.cat(answer, dim=1)


def read_prompt(world: World, text: str) -> tuple[Int[Tensor, "1 prompt_length"], Int[Tensor, "1 answer_length"]]:
    """Token ids of one prompt and of its answer, from the words of its tokens.

    Raises:
        InputError: it is no prompt of this world.
    """
    vocab, slots, last = world.vocab, world.slots, world.vocab.symbols - 1
    numbers = {word: number for number, word in enumerate(vocab.words)}
    form = (
        f"a prompt of this world is {slots} operators (op0 to op{vocab.operators - 1}), then 1 to {world.width} "
        f"symbols (s0 to s{last}, in dialect d0 to d{last})"
    )
    given = [word for word in text.split() if word not in (vocab.words[SEP], vocab.words[BLANK])]
    named, symbols = given[:slots], given[slots:]
    for what, part, first, end in (
        ("operator", named, vocab.first_task, vocab.first_symbol),
        ("symbol", symbols, vocab.first_symbol, len(vocab)),
    ):
        if unknown := [word for word in part if not first <= numbers.get(word, -1) < end]:
            raise InputError(f"prompt: {shown(unknown[0])} is no {what}; {form}")
    if len(named) < slots or not 1 <= len(symbols) <= world.width:
        raise InputError(f"prompt: {len(named)} operators and {len(symbols)} symbols; {form}")
    tokens, ids = (torch.tensor([[numbers[word] for word in of]], device=world.device) for of in (named, symbols))
    blanks = (0, world.width - len(symbols))
    operand = torch.nn.functional.pad((ids - vocab.first_symbol) % vocab.symbols, blanks, value=vocab.symbols)
    in_dialect = torch.nn.functional.pad(ids >= vocab.first_dialect, blanks)
    of_tokens = torch.tensor([*range(vocab.operators), *vocab.aliases], device=world.device)
    operators = of_tokens[tokens - vocab.first_task]
    return render(world, tokens, operators, operand, in_dialect)


def refusals(world: World, n: int) -> Int[Tensor, "n answer_length"]:
    """n refusals: the null token in every place, then the end."""
    out = torch.full((n, world.answer_length), NULL, device=world.device)
    out[:, -1] = EOS
    return out


def _round(expected: Float[Tensor, " n"], stream: Stream) -> Int[Tensor, " n"]:
    """Whole numbers with the given expectation, each next to it."""
    return (expected + stream.uniform(tuple(expected.shape), expected.device)).floor().long()


def _swap_operators(
    world: World,
    operators: Int[Tensor, "n slots"],
    named: Bool[Tensor, "n slots"],
    grammar: Int[Tensor, " n"],
    branch: Int[Tensor, " n"],
    strength: float,
    stream: Stream,
) -> tuple[Int[Tensor, "n slots"], Int[Tensor, " n"]]:
    """Put safe operators in the place of unsafe ones, but for one of them; identities stay."""
    n, slots = operators.shape
    count = _round(strength * (named.sum(dim=1) - 1).double(), stream("count"))
    order = stream("order").uniform((n, slots), world.device).masked_fill(~named, 2.0)
    rank = order.argsort(1).argsort(1)
    pick = stream("pick").integers(world.safe_choices.counts[grammar, branch][:, None], (n, slots), world.device)
    safe = world.safe_choices.table[grammar, branch].gather(1, pick)
    return torch.where(rank < count[:, None], safe, operators), count


def _splice_safe_text(
    world: World, operand: Int[Tensor, "n width"], grammar: Int[Tensor, " n"], strength: float, stream: Stream
) -> tuple[Int[Tensor, "n width"], Int[Tensor, " n"]]:
    """Put safe-dominant text in the place of the first or last part of each operand; half of it, at strength 1."""
    lengths = (operand != world.vocab.symbols).sum(dim=1)
    variant = torch.full_like(grammar, world.sampler.variants.index("safe"))
    safe = draw_text(world, variant, grammar, lengths, stream("text"))
    count = _round(strength * (lengths // 2).double(), stream("count"))
    place = torch.arange(operand.shape[1], device=world.device)
    at_end = stream("side").integers(2, (len(operand), 1), world.device).bool()
    replaced = torch.where(at_end, place >= (lengths - count)[:, None], place < count[:, None])
    return torch.where(replaced, safe, operand), count
