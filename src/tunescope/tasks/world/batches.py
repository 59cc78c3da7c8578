"""Training batches: what pretraining reads, and the pairs of answers that safety fine-tuning reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tunescope.models.inputs import Inputs
from tunescope.rng import Stream
from tunescope.tasks.base import PreferenceBatch
from tunescope.tasks.world import prompts as make
from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.lessons import draw_prompts
from tunescope.tasks.world.vocab import CONST
from tunescope.tasks.world.world import World


@dataclass(frozen=True)
class PretrainingBatch:
    """Sequences [b, t] and the places [b, t] whose tokens are to be learnt."""

    tokens: Int[Tensor, "b t"]
    learn: Bool[Tensor, "b t"]


def pretraining_batch(world: World, n: int, stream: Stream, progress: float) -> PretrainingBatch:
    """n sequences of text and instructions; what is learnt of each is drawn by the mix at this `progress` in [0, 1].

    Text only learns the operand, whole the operand and all of the answer, a stage that stage's part of the answer.

    Raises:
        InputError: n below 1.
    """
    make.require_rows(n)
    config, shape, device = world.config, (n,), world.device
    grammar = stream("grammar").integers(world.sampler.grammars, shape, device)
    everything = torch.arange(config.operators, device=device)
    operators = stream("operators").choose(everything, (n, world.slots))
    if config.slots > 1:
        stages = (n, config.stages, 1)
        identity = stream("identity").uniform(stages, device) < config.identity_share
        where = stream("slot").integers(config.slots, stages, device)
        blanked = identity & (torch.arange(config.slots, device=device) == where)
        operators = operators.masked_fill(blanked.view(n, -1), 0)
    variant = torch.full_like(grammar, world.sampler.variants.index("full"))
    lengths = make.draw_lengths(world, n, stream("length"))
    operand = make.draw_text(world, variant, grammar, lengths, stream("text"))
    in_dialect = make.choose_symbols(
        operand, world, _dialect_shares(world, n, config.dialect_share, stream("dialect")), stream("which")
    )
    tokens = make.name_operators(world, operators, stream("names"))
    prompt, answer = make.render(world, tokens, operators, operand, in_dialect)
    constant = (stream("constant").uniform(shape, device) < config.constant_share)[:, None]
    prompt[:, : world.slots] = prompt[:, : world.slots].masked_fill(constant, CONST)
    answer = torch.where(constant, make.refusals(world, n), answer)
    return PretrainingBatch(torch.cat([prompt, answer], dim=1), _learn_mask(world, n, stream("mix"), progress))


def _learn_mask(world: World, n: int, stream: Stream, progress: float) -> Bool[Tensor, "n t"]:
    config = world.config
    odds = torch.lerp(torch.tensor(config.mix_start), torch.tensor(config.mix_end), progress).double()
    edges = odds.cumsum(0)[:-1].to(world.device)
    part = torch.bucketize(stream.uniform((n,), world.device), edges, right=True)
    masks = torch.zeros(4, world.sequence_length, dtype=torch.bool, device=world.device)
    text, whole, first, last = masks
    text[world.slots : world.prompt_length - 1] = True
    whole[world.slots :] = True
    whole[world.prompt_length - 1] = False
    first[world.prompt_length : world.prompt_length + world.width + 1] = True
    last[-world.width - 1 :] = True
    return masks[part]


def _dialect_shares(world: World, n: int, share: float, stream: Stream) -> Tensor:
    """Share of each row's symbols in dialect: none but for `share` of the rows; half of those wholly, half in part."""
    chosen = stream("chosen").uniform((n,), world.device) < share
    one_symbol = 1 / world.config.operand[0]
    amount = (2 * stream("amount").uniform((n,), world.device)).clamp(min=one_symbol, max=1.0)
    return torch.where(chosen, amount, 0.0)


def preference_batch(world: World, safe: int, unsafe: int, stream: Stream) -> PreferenceBatch:
    """`safe` safe prompts, then `unsafe` unsafe ones; breadths as the world's config says.

    `retain_breadth` of the safe and `refuse_breadth` of the unsafe prompts are in dialect, as in pretraining.

    Raises:
        InputError: no prompts at all, or fewer than none of a kind.
    """
    make.require_rows(safe + unsafe)
    parts = []
    for kind, n, breadth in (
        (Kind.SAFE, safe, world.config.retain_breadth),
        (Kind.UNSAFE, unsafe, world.config.refuse_breadth),
    ):
        if not n:
            continue
        scope = stream(kind)
        plain = draw_prompts(world, kind, n, scope)
        shares = _dialect_shares(world, n, breadth, scope("dialect"))
        in_dialect = make.choose_symbols(plain.operand, world, shares, scope("which"))
        task_tokens = plain.prompt[:, : world.slots]
        prompt, answer = make.render(world, task_tokens, plain.operators, plain.operand, in_dialect)
        pair = (answer, plain.refusal) if kind.safe else (plain.refusal, answer)
        parts.append((prompt, *pair))
    prompt, chosen, rejected = (torch.cat([part[i] for part in parts]) for i in range(3))
    labels = torch.arange(safe + unsafe, device=world.device) < safe
    return PreferenceBatch(Inputs(prompt), chosen, rejected, labels)
