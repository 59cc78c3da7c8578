"""Capturing changes nothing; editing changes exactly what is asked for; neither leaves a trace."""

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunescope.models.hooks import capture, edit, patch
from tunescope.models.logps import keys_and_values
from tunescope.models.sites import LAYER_SITES, Site

SITES = [Site(None, "embed"), *(Site(layer, name) for layer in range(2) for name in LAYER_SITES)]
LAST = Site(1, "resid_post")
HERE = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
THERE = torch.tensor([[2, 7, 1, 8, 2], [8, 1, 8, 2, 8]])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def built(request: pytest.FixtureRequest, build: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return build(request.param)


def hooks(model: nn.Module) -> list[int]:
    """How many forward hooks every module has; transformers may have put some there itself."""
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


@pytest.fixture
def model(built: PreTrainedModel) -> Iterator[PreTrainedModel]:
    before = hooks(built)
    yield built
    assert hooks(built) == before, "a hook was left behind"


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor = HERE) -> Tensor:
    return model(tokens, use_cache=False).logits


def captured(model: PreTrainedModel, site: Site, tokens: Tensor = HERE) -> Tensor:
    with capture(model, [site]) as found:
        logits(model, tokens)
    return found[site]


def identity(activation: Tensor) -> Tensor:
    return activation


def test_capture_changes_nothing_and_finds_every_site(model: PreTrainedModel) -> None:
    untouched = logits(model)
    with capture(model, SITES) as found:
        assert not found
        assert torch.equal(logits(model), untouched)
    assert set(found) == set(SITES)
    assert all(activation.shape[:2] == HERE.shape and not activation.requires_grad for activation in found.values())


def test_capture_takes_any_iterable_and_holds_the_last_pass(model: PreTrainedModel) -> None:
    with capture(model, (site for site in SITES)) as found:
        logits(model, THERE)
        first = dict(found)
        logits(model, HERE)
    for site in SITES:
        assert not torch.equal(first[site], found[site])
        assert torch.equal(found[site], captured(model, site, HERE))


def test_capture_can_keep_the_graph(model: PreTrainedModel) -> None:
    with capture(model, SITES, keep_graph=True) as found, capture(model, SITES) as detached:
        loss = model(HERE, use_cache=False).logits.square().sum()
    gradients = torch.autograd.grad(loss, [found[site] for site in SITES])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not any(activation.requires_grad for activation in detached.values())


@pytest.mark.parametrize("site", SITES, ids=str)
def test_edit_with_identity_changes_nothing(model: PreTrainedModel, site: Site) -> None:
    untouched = logits(model)
    with edit(model, {site: identity}):
        assert torch.equal(logits(model), untouched)
    with edit(model, {site: torch.zeros_like}):
        assert not torch.equal(logits(model), untouched)
    assert torch.equal(logits(model), untouched)


def test_edit_of_every_site_at_once_with_identity_changes_nothing(model: PreTrainedModel) -> None:
    with edit(model, dict.fromkeys(SITES, identity)):
        edited = logits(model)
    assert torch.equal(edited, logits(model))


@pytest.mark.parametrize("site", [s for s in SITES if s.name in ("resid_pre", "resid_post")], ids=str)
def test_patching_the_residual_stream_gives_the_other_run(model: PreTrainedModel, site: Site) -> None:
    other = captured(model, site, THERE)
    with edit(model, {site: lambda _: other}):
        assert torch.equal(logits(model, HERE), logits(model, THERE))


@pytest.mark.parametrize("layer", [0, 1])
def test_patching_resid_mid_gives_the_other_run(model: PreTrainedModel, layer: int) -> None:
    other = captured(model, Site(layer, "resid_mid"), THERE)
    with edit(model, {Site(layer, "resid_mid"): lambda _: other}):
        torch.testing.assert_close(logits(model, HERE), logits(model, THERE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", [slice(None), slice(2), slice(2, 4), slice(-1, None)], ids=str)
def test_a_patch_is_of_its_positions_alone(model: PreTrainedModel, where: slice) -> None:
    site, other = Site(0, "resid_post"), captured(model, Site(0, "resid_post"), THERE)
    with patch(model, {site: other[:, where]}, where), capture(model, [site]) as found:
        patched = logits(model)
    wanted = captured(model, site).clone()
    wanted[:, where] = other[:, where]
    assert torch.equal(found[site], wanted)
    if where == slice(None):
        assert torch.equal(patched, logits(model, THERE))


def test_a_patch_is_of_every_pass_that_begins_and_of_none_that_goes_on(model: PreTrainedModel) -> None:
    """What the last layer hands on is kept in no keys and values: what goes on from them is as if nothing was done."""

    @torch.no_grad()
    def read() -> tuple[Tensor, Tensor]:
        kept = keys_and_values(model)
        first = model(HERE, **kept, use_cache=True).logits
        return first, model(THERE, **kept, use_cache=True).logits  # as long as the prompts

    plain = read()
    with patch(model, {LAST: captured(model, LAST, THERE)}, slice(None)):
        patched = [read() for _ in range(2)]
    for first, second in patched:
        assert torch.equal(first, logits(model, THERE))
        assert torch.equal(second, plain[1])


@pytest.mark.parametrize("given", [(1, 5, 16), (3, 5, 16), (2, 4, 16)])
def test_a_patch_of_another_number_of_rows_or_positions_is_refused(
    model: PreTrainedModel, given: tuple[int, ...]
) -> None:
    with (
        pytest.raises(ValueError, match="cannot take the place"),
        patch(model, {LAST: torch.zeros(given)}, slice(None)),
    ):
        logits(model)


def test_patching_one_position_leaves_those_before_it(model: PreTrainedModel) -> None:
    other = captured(model, Site(0, "mlp_out"), THERE)

    def patch(activation: Tensor) -> Tensor:
        activation[:, 3] = other[:, 3]  # in place, on the clone
        return activation

    with capture(model, [Site(0, "mlp_out")]) as own, edit(model, {Site(0, "mlp_out"): patch}):
        patched = logits(model)
    untouched = logits(model)
    assert torch.equal(patched[:, :3], untouched[:, :3])
    assert not torch.equal(patched[:, 3:], untouched[:, 3:])
    assert torch.equal(own[Site(0, "mlp_out")], captured(model, Site(0, "mlp_out")))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("part", "changed"), [("attn_out", ("resid_mid", "resid_post")), ("mlp_out", ("resid_post",))])
def test_a_shift_of_what_a_part_adds_arrives_in_the_residual_stream(
    model: PreTrainedModel, layer: int, part: str, changed: tuple[str, ...]
) -> None:
    sites = pre, mid, post = [Site(layer, name) for name in ("resid_pre", "resid_mid", "resid_post")]
    with capture(model, sites) as before:
        logits(model)
    with edit(model, {Site(layer, part): torch.zeros_like}), capture(model, sites) as after:
        logits(model)
    if part == "attn_out":
        assert torch.equal(after[mid], after[pre])
    else:
        assert torch.equal(after[post], after[mid])
        assert torch.equal(after[mid], before[mid])
    assert {site.name for site in sites if not torch.equal(before[site], after[site])} == set(changed)


@pytest.mark.parametrize("outer", ["edit", "capture"])
def test_an_edit_of_resid_mid_takes_both_ways(model: PreTrainedModel, outer: str) -> None:
    """Through the MLP and past it, and so that a capture of resid_post sees it whichever was entered first."""
    mid, out, post = Site(0, "resid_mid"), Site(0, "mlp_out"), Site(0, "resid_post")
    new = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    contexts = [edit(model, {mid: lambda _: new}), capture(model, [post, out])]
    first, second = contexts if outer == "edit" else contexts[::-1]
    with first as a, second as b:
        logits(model)
    found = b if outer == "edit" else a
    torch.testing.assert_close(found[post], new + found[out], rtol=1e-5, atol=1e-6)


def test_edits_of_one_layer_work_together(model: PreTrainedModel) -> None:
    """resid_mid twice, mlp_out and resid_post, nested: each acts on what those before it left."""
    mid, out, post = Site(0, "resid_mid"), Site(0, "mlp_out"), Site(0, "resid_post")
    plain = captured(model, mid)
    seen: list[Tensor] = []

    def last(activation: Tensor) -> Tensor:
        seen.append(activation)
        return activation * 2

    with (
        edit(model, {post: last}),
        edit(model, {mid: lambda x: x + 1}),
        edit(model, {out: lambda x: torch.full_like(x, 0.5)}),
        edit(model, {mid: lambda x: x * 3}),
        capture(model, [mid, post]) as found,
    ):
        logits(model)
    torch.testing.assert_close(found[mid], (plain + 1) * 3)
    torch.testing.assert_close(seen[0], (plain + 1) * 3 + 0.5)
    torch.testing.assert_close(found[post], seen[0] * 2)


def test_contexts_act_in_the_order_of_entry(model: PreTrainedModel) -> None:
    for site in SITES:
        plain = captured(model, site)
        with (
            capture(model, [site]) as first,
            edit(model, {site: lambda x: x + 1}),
            capture(model, [site]) as second,
            edit(model, {site: lambda x: x * 2}),
            capture(model, [site]) as third,
        ):
            logits(model)
        assert torch.equal(first[site], plain)
        assert torch.equal(second[site], plain + 1)
        assert torch.equal(third[site], (plain + 1) * 2)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_gradients_flow_through_edits_as_through_captures(model: PreTrainedModel, site: Site) -> None:
    """The derivative along a direction: of an edit that moves the activation, and from the gradient at the capture."""
    with capture(model, [site], keep_graph=True) as found:
        loss = model(HERE, use_cache=False).logits.square().sum()
    (gradient,) = torch.autograd.grad(loss, [found[site]])
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    dial = torch.zeros((), requires_grad=True)
    with edit(model, {site: lambda activation: activation + dial * direction}):
        loss = model(HERE, use_cache=False).logits.square().sum()
    (slope,) = torch.autograd.grad(loss, [dial])
    assert slope.abs() > 0
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-4, atol=1e-5)


def test_edits_act_under_autocast(model: PreTrainedModel) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        untouched = logits(model)
        with edit(model, dict.fromkeys(SITES, identity)):
            assert torch.equal(logits(model), untouched)


def test_edits_act_in_bfloat16(built: PreTrainedModel) -> None:
    model, mid = deepcopy(built).bfloat16(), Site(0, "resid_mid")
    untouched, other = logits(model), captured(model, mid, THERE)
    with edit(model, dict.fromkeys(SITES, identity)):
        assert torch.equal(logits(model), untouched)
    with edit(model, {mid: lambda _: other}), capture(model, [Site(0, "resid_post")]) as found:
        logits(model)
    there = captured(model, Site(0, "resid_post"), THERE)
    torch.testing.assert_close(found[Site(0, "resid_post")], there, rtol=0.0, atol=2**-7 * float(there.abs().max()))


def test_hooks_go_when_a_forward_pass_fails(model: PreTrainedModel) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    with (
        pytest.raises(RuntimeError, match="on purpose"),
        capture(model, SITES),
        edit(model, dict.fromkeys(SITES, identity)),
        edit(model, {LAST: fail}),
    ):
        logits(model)


def test_hooks_go_when_a_later_site_is_not_there(model: PreTrainedModel) -> None:
    missing = Site(7, "mlp_in")
    with pytest.raises(ValueError, match="no layer 7"), capture(model, [*SITES, missing]):
        pass
    with pytest.raises(ValueError, match="no layer 7"), edit(model, dict.fromkeys([*SITES, missing], identity)):
        pass


def test_inner_contexts_leave_the_outer_ones_alone(model: PreTrainedModel) -> None:
    with edit(model, {LAST: torch.zeros_like}):
        zeroed, before = logits(model), hooks(model)
        with capture(model, SITES), edit(model, {LAST: lambda x: x + torch.arange(16)}):
            assert not torch.equal(logits(model), zeroed)
        assert hooks(model) == before
        assert torch.equal(logits(model), zeroed)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: x[:, :1], r"edit of resid_post\.1 .* torch.float32 \[2, 5, 16\] on cpu; got .*\[2, 1, 16\]"),
        (lambda x: x.double(), "got torch.float64"),
        (lambda x: x.to("meta"), "got .* on meta"),
        (lambda x: None, "must return a tensor, got NoneType"),
        (lambda x: 0.0, "must return a tensor, got float"),
    ],
)
def test_replacements_that_do_not_fit_are_refused(model: PreTrainedModel, bad: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message), edit(model, {LAST: bad}):
        logits(model)


def test_compiled_models_are_refused(build: Callable[..., PreTrainedModel]) -> None:
    """Compiled code ignores hooks that come later, so that the edits would silently do nothing."""
    model, sites = build("gpt2", layers=1), [Site(0, "mlp_in")]
    torch.compile(model, backend="eager")
    with capture(model, sites):  # the model under a compiled one is as it was
        pass
    for part in (model, model.transformer.h[0]):
        part.compile(backend="eager")
        with pytest.raises(ValueError, match="compiled"), capture(model, sites):
            pass
        with pytest.raises(ValueError, match="compiled"), edit(model, dict.fromkeys(sites, identity)):
            pass
        part._compiled_call_impl = None
    model.transformer.h[0] = torch.compile(model.transformer.h[0], backend="eager")
    with pytest.raises(ValueError, match="compiled"), capture(model, sites):
        pass


def test_generation_runs_through_the_edits(model: PreTrainedModel) -> None:
    direction = torch.linspace(-1, 1, 16)
    with edit(model, {LAST: lambda x: torch.zeros_like(x) + direction}):
        want = int(logits(model)[0, -1].argmax())
        answers = model.generate(HERE, attention_mask=torch.ones_like(HERE), max_new_tokens=3, do_sample=False)
    assert answers[:, 5:].tolist() == [[want] * 3] * 2
