"""Attacks break a planted weak model, and never a constant refuser."""

import pytest
import torch
from transformers import PreTrainedModel

from tunescope.attacks.insert import inserted
from tunescope.attacks.soft import soft_prompts, universal_soft_prompt
from tunescope.attacks.suffix import suffixes
from tunescope.config import Built
from tunescope.errors import InputError
from tunescope.models.build import build_model
from tunescope.models.inputs import IGNORED, Inputs
from tunescope.models.logps import answer_logits, follows, gathered_logps
from tunescope.rng import Stream

CPU = torch.device("cpu")
ROOT = Stream.named(0, "attacks")
NULL, SAID = 1, 2  # what the planted models say
IDS = ROOT("ids").integers(10, (6, 5), CPU) + 5
ANSWER = torch.full((6, 3), SAID)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def fresh(request: pytest.FixtureRequest) -> PreTrainedModel:
    config = Built(architecture=request.param, layers=2, heads=2, width=16)
    model = build_model(config, 20, 16, ROOT("model"), CPU).eval().requires_grad_(False)
    for parameter in model.parameters():  # as initialised, the blocks change next to nothing
        parameter.mul_(5)
    return model


@pytest.fixture(scope="module")
def weak() -> PreTrainedModel:
    """Says NULL, unless what it reads lies along one axis: then SAID. One layer whose attention takes the mean."""
    return _planted(1.0)


@pytest.fixture(scope="module")
def refuser() -> PreTrainedModel:
    """Says NULL whatever it reads."""
    return _planted(0.0)


def _planted(reads: float) -> PreTrainedModel:
    config = Built(layers=1, heads=2, width=16)
    model = build_model(config, 20, 16, ROOT("planted"), CPU).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "mlp" in name or "wpe" in name or name.endswith(".bias"):
            parameter.zero_()
    block, table = model.transformer.h[0], model.transformer.wte.weight
    table[:, :4] = 0.0
    table[:, 4:] -= table[:, 4:].mean(dim=1, keepdim=True)  # so that the layer norm leaves axis 0 at zero
    table[SAID, 0], table[NULL, 1] = 1.0, 1.0
    block.attn.c_attn.weight.zero_()
    block.attn.c_attn.weight[0, 32] = 4.0 * reads  # value of what lies along axis 0, averaged over all places
    block.attn.c_proj.weight.zero_()
    block.attn.c_proj.weight[0, 0] = 1.0
    model.transformer.ln_f.bias[1] = 1.0  # NULL, by default
    return model


def test_extra_places_leave_the_last_token_and_the_answer_where_they_were(fresh: PreTrainedModel) -> None:
    extra = ROOT("extra").normal((6, 3, 16), CPU).float()
    both = inserted(Inputs(IDS), extra, fresh)
    assert both.positions is not None
    assert both.positions[0].tolist() == [0, 1, 2, 3, 3, 3, 3, 4]
    assert torch.equal(both.sequence[:, 4:7], extra)
    assert torch.equal(both.sequence[:, -1], fresh.get_input_embeddings()(IDS[:, -1]))
    tokens = IDS[:, :2]
    by_id = inserted(Inputs(IDS), tokens, fresh)
    assert torch.equal(by_id.sequence[:, 4:6], fresh.get_input_embeddings()(tokens))


def test_no_extra_places_change_nothing(fresh: PreTrainedModel) -> None:
    none = inserted(Inputs(IDS), torch.zeros(6, 0, 16), fresh)
    plain = answer_logits(fresh, Inputs(IDS), ANSWER)
    torch.testing.assert_close(answer_logits(fresh, none, ANSWER), plain, rtol=1e-4, atol=1e-4)


def test_what_is_put_in_is_read_beside_the_prompt(fresh: PreTrainedModel) -> None:
    """Two prompts with the same extra embeddings stay two; the extra ones change what both say."""
    extra = ROOT("extra").normal((1, 2, 16), CPU).float().expand(6, -1, -1)
    logits = answer_logits(fresh, inserted(Inputs(IDS), extra, fresh), ANSWER)[:, 0]
    plain = answer_logits(fresh, Inputs(IDS), ANSWER)[:, 0]
    assert (logits - plain).abs().amax(dim=1).min() > 1e-2
    assert torch.pdist(logits).min() > 1e-2


def test_soft_prompts_break_a_weak_model_within_their_bound(weak: PreTrainedModel) -> None:
    plain = Inputs(IDS)
    assert not follows(weak, plain, ANSWER).any()
    found = soft_prompts(weak, plain, ANSWER, 2, 40, 3.0, 4, ROOT("soft"))
    assert (found.steps >= 0).all()  # the random start may do
    assert (found.steps > 0).any()
    assert follows(weak, inserted(plain, found.extra, weak), ANSWER).all()
    mean = weak.get_input_embeddings().weight.norm(dim=1).mean()
    assert (found.extra.norm(dim=2) <= 3.0 * mean * 1.0001).all()


def test_what_was_answered_is_left_alone(weak: PreTrainedModel) -> None:
    """More steps do not change what fewer have found."""
    few, many = (soft_prompts(weak, Inputs(IDS), ANSWER, 1, steps, 1.0, 4, ROOT("soft")) for steps in (1, 40))
    done = few.steps >= 0
    assert done.any()
    assert torch.equal(few.steps[done], many.steps[done])
    assert torch.equal(few.extra[done], many.extra[done])


def test_one_prompt_is_attacked_whatever_the_others(fresh: PreTrainedModel) -> None:
    together = soft_prompts(fresh, Inputs(IDS), ANSWER, 1, 2, 1.0, 4, ROOT("soft"))
    alone = soft_prompts(fresh, Inputs(IDS[:1]), ANSWER[:1], 1, 2, 1.0, 4, ROOT("soft"))
    torch.testing.assert_close(together.extra[:1], alone.extra, rtol=1e-3, atol=1e-4)


def test_answers_of_other_lengths_are_attacked_each_as_if_alone(fresh: PreTrainedModel) -> None:
    """What is behind the end of an answer is of no matter, and the mean is over its own tokens."""
    lengths = torch.tensor([3, 1, 2, 3, 2, 1])
    ragged = ANSWER.masked_fill(torch.arange(3) >= lengths[:, None], IGNORED)
    soft = soft_prompts(fresh, Inputs(IDS), ragged, 1, 3, 1.0, 4, ROOT("soft"))
    given = (2, 2, 4, 8, torch.arange(5, 15), 4, ROOT("suffix"))
    hard = suffixes(fresh, Inputs(IDS), ragged, *given)
    whole = suffixes(fresh, Inputs(IDS), ANSWER, *given)
    assert (hard.nll[lengths < 3] != whole.nll[lengths < 3]).all()
    for n in (1, 2, 3):
        rows = (lengths == n).nonzero().squeeze(1)
        logps = gathered_logps(
            answer_logits(fresh, inserted(Inputs(IDS[rows]), hard.tokens[rows], fresh), ANSWER[rows, :n]),
            ANSWER[rows, :n],
        )
        torch.testing.assert_close(hard.nll[rows], -logps.mean(1), rtol=1e-4, atol=1e-4)
        wanted = follows(fresh, inserted(Inputs(IDS[rows]), soft.extra[rows], fresh), ANSWER[rows, :n])
        assert wanted.tolist() == (soft.steps[rows] >= 0).tolist()
    # The first, by itself and cut to its own length, whatever the others' lengths.
    one = soft_prompts(fresh, Inputs(IDS[:1]), ANSWER[:1], 1, 3, 1.0, 4, ROOT("soft"))
    torch.testing.assert_close(soft.extra[:1], one.extra, rtol=1e-3, atol=1e-4)
    short = soft_prompts(fresh, Inputs(IDS[:2]), ANSWER[:2, :1], 1, 3, 1.0, 4, ROOT("soft"))
    torch.testing.assert_close(soft.extra[1:2], short.extra[1:], rtol=1e-3, atol=1e-4)


def test_a_universal_soft_prompt_works_on_prompts_that_it_has_not_seen(weak: PreTrainedModel) -> None:
    found = universal_soft_prompt(weak, Inputs(IDS[:3]), ANSWER[:3], 2, 40, 3.0, 2, ROOT("soft"))
    whole = universal_soft_prompt(weak, Inputs(IDS[:3]), ANSWER[:3], 2, 2, 3.0, 3, ROOT("soft"))
    parts = universal_soft_prompt(weak, Inputs(IDS[:3]), ANSWER[:3], 2, 2, 3.0, 1, ROOT("soft"))
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)
    assert follows(weak, inserted(Inputs(IDS[3:]), found.expand(3, -1, -1), weak), ANSWER[3:]).all()


def test_suffixes_break_a_weak_model_with_allowed_tokens_alone(weak: PreTrainedModel) -> None:
    allowed = torch.tensor([2, *range(5, 15)])
    found = suffixes(weak, Inputs(IDS), ANSWER, 4, 12, 16, 8, allowed, 4, ROOT("suffix"))
    assert torch.isin(found.tokens, allowed).all()
    assert follows(weak, inserted(Inputs(IDS), found.tokens, weak), ANSWER).all()
    few = suffixes(weak, Inputs(IDS), ANSWER, 4, 2, 16, 8, allowed, 4, ROOT("suffix"))
    assert (found.nll <= few.nll).all()
    assert (found.steps > 0).any()
    for step in {*found.steps.tolist()} - {0}:  # with one step less there is no success yet
        for n in {max(1, step - 1), step}:
            some = suffixes(weak, Inputs(IDS), ANSWER, 4, n, 16, 8, allowed, 4, ROOT("suffix")).tokens
            hits = follows(weak, inserted(Inputs(IDS), some, weak), ANSWER)[found.steps == step]
            assert hits.tolist() == [n == step] * len(hits)


def test_a_constant_refuser_is_never_broken(refuser: PreTrainedModel) -> None:
    plain = Inputs(IDS)
    assert (soft_prompts(refuser, plain, ANSWER, 2, 20, 3.0, 4, ROOT("soft")).steps == -1).all()
    found = suffixes(refuser, plain, ANSWER, 4, 5, 8, 8, torch.arange(2, 15), 4, ROOT("suffix"))
    assert (found.steps == -1).all()
    assert not follows(refuser, inserted(plain, found.tokens, refuser), ANSWER).any()
    shared = universal_soft_prompt(refuser, plain, ANSWER, 2, 20, 3.0, 4, ROOT("soft"))
    assert not follows(refuser, inserted(plain, shared.expand(6, -1, -1), refuser), ANSWER).any()


@pytest.mark.parametrize(("k", "steps", "bound"), [(0, 5, 1.0), (1, 0, 1.0), (1, 5, 0.0), (1, 5, float("nan"))])
def test_a_soft_prompt_of_nothing_is_refused(fresh: PreTrainedModel, k: int, steps: int, bound: float) -> None:
    for attack in (soft_prompts, universal_soft_prompt):
        with pytest.raises(InputError, match="soft prompt: k"):
            attack(fresh, Inputs(IDS), ANSWER, k, steps, bound, 4, ROOT("soft"))


def test_a_suffix_of_nothing_is_refused(fresh: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="suffix: k 0"):
        suffixes(fresh, Inputs(IDS), ANSWER, 0, 5, 8, 8, torch.arange(20), 4, ROOT("suffix"))
