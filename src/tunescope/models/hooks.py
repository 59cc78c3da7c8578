"""Reading and replacing a model's activations: context managers, which leave no hook behind however they end.

Where several are active at one site, they act in the order in which they were entered: a capture sees what the edits
before it made of the activation, and not what those after it will. What lies downstream of an edit always sees it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from tunescope.models.sites import Place, Site, locate

Edit = Callable[[Float[Tensor, "b t width"]], Float[Tensor, "b t width"]]
_Step = Callable[[Tensor], Tensor]
_HIDDEN = "hidden_states"  # transformers' name of a module's first input, where it is passed by name


@contextmanager
def capture(
    model: PreTrainedModel,
    sites: Iterable[Site],
    *,
    keep_graph: bool = False,
    take: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[dict[Site, Tensor]]:
    """Inside the block, every forward pass puts these activations into the dictionary, over those of the pass before.

    The tensors are the model's own, not copies: read them, and clone what is to be changed.

    Args:
        keep_graph: leave the tensors in the autograd graph, so that gradients with respect to them can be taken.
        take: what of an activation [b, t, width] is put there, while the pass goes on; None takes all of it.

    Raises:
        ValueError: the model has no such site, or is compiled.
    """
    captured: dict[Site, Tensor] = {}

    def store(site: Site, activation: Tensor) -> None:
        taken = activation if keep_graph else activation.detach()
        captured[site] = take(taken) if take else taken

    _refuse_compiled(model)
    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(_hook(locate(model, site), partial(store, site)))
        yield captured


@contextmanager
def edit(model: PreTrainedModel, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Inside the block, the model goes on with `edits[site](activation)` in place of the activation.

    The function gets a clone, which it may change in place, and which is in the autograd graph. It is called in every
    pass: tokens that all prompts share may be read in one of their own, before the others. What it returns must have
    the same shape, dtype and device. A replaced resid_mid reaches resid_post to within rounding, everything else
    exactly.

    Raises:
        ValueError: the model has no such site, or is compiled; from the forward pass: a replacement that does not fit.
    """
    _refuse_compiled(model)
    with ExitStack() as hooks:
        for site, function in edits.items():
            replace: _Step = partial(_replacement, site, function)
            if site.name == "resid_mid":
                replace, carry = _along_skip(replace)
                # First, so that whatever else reads or replaces resid_post finds it with the change.
                block = locate(model, Site(site.layer, "resid_post"))
                hooks.enter_context(_hook(block, carry, first=True))
            hooks.enter_context(_hook(locate(model, site), replace))
        yield


@contextmanager
def patch(
    model: PreTrainedModel, activations: Mapping[Site, Float[Tensor, "n p width"]], positions: slice
) -> Iterator[PreTrainedModel]:
    """Inside the block, each pass on prompts goes on with these activations at p of its positions, row by row.

    A pass that goes on from kept keys and values is left alone: these are of prompts that were patched.

    Raises:
        ValueError: as `edit`; from the forward pass: it has not n rows, or not p such positions.
    """
    begins = True

    def look(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal begins
        begins = not any(isinstance(given, Cache) and given.get_seq_length() for given in (*args, *named.values()))

    def put(new: Tensor, activation: Tensor) -> Tensor:
        if begins:
            there = activation[:, positions]
            if there.shape != new.shape:
                raise ValueError(f"activations {list(new.shape)} cannot take the place of {list(there.shape)}")
            activation[:, positions] = new
        return activation

    look.patches = True  # type: ignore[attr-defined]
    edits: dict[Site, Edit] = {site: partial(put, new) for site, new in activations.items()}
    with model.register_forward_pre_hook(look, with_kwargs=True), edit(model, edits):
        yield model


def patched(model: PreTrainedModel) -> bool:
    """Whether places of a prompt are patched now, which must then be read whole, in one pass."""
    return any(getattr(hook, "patches", False) for hook in model._forward_pre_hooks.values())


def _replacement(site: Site, function: Edit, activation: Tensor) -> Tensor:
    new = function(activation.clone())
    if not isinstance(new, Tensor):
        raise ValueError(f"the edit of {site} must return a tensor, got {type(new).__name__}")
    want, got = _describe(activation), _describe(new)
    if got != want:
        raise ValueError(f"the edit of {site} must return a tensor like the one it gets, {want}; got {got}")
    return new


def _along_skip(replace: _Step) -> tuple[_Step, _Step]:
    """An edit of resid_mid in two parts: for the norm that reads it, and for the skip connection past the MLP.

    A block adds the MLP's output to a resid_mid that it keeps to itself. The change is therefore added once more to
    the block's output; unlike a sum made anew, this is right together with any other edit in the same layer.
    """
    change: list[Tensor] = []

    def at_norm(mid: Tensor) -> Tensor:
        new = replace(mid)
        change[:] = [new - mid]
        return new

    def at_output(post: Tensor) -> Tensor:
        return post + change.pop()

    return at_norm, at_output


def _hook(place: Place, see: Callable[[Tensor], Tensor | None], *, first: bool = False) -> RemovableHandle:
    """Shows `see` the activation on every pass; the model goes on with what it returns, if not None."""

    def seen(whole: Tensor) -> Tensor | None:
        if place.part is None:
            return see(whole)
        part = whole[..., place.part]
        new = see(part)
        # Put together anew even if unchanged: what was seen is then what the model goes on with, gradients and all.
        before, after = whole[..., : place.part.start], whole[..., place.part.stop :]
        return torch.cat([before, part if new is None else new, after], dim=-1)

    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...] | None:
        new = seen(args[0] if args else named[_HIDDEN])
        if new is None:
            return None
        return ((new, *args[1:]), named) if args else ((), {**named, _HIDDEN: new})

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return seen(output)
        new = seen(output[0])
        return None if new is None else (new, *output[1:])

    if place.side == "input":
        return place.module.register_forward_pre_hook(before, prepend=first, with_kwargs=True)
    return place.module.register_forward_hook(after, prepend=first)


def _refuse_compiled(model: nn.Module) -> None:
    """Compiled code takes no notice of hooks added later: captures would stay empty and edits do nothing."""
    for module in model.modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise ValueError("the model is compiled, and compiled code ignores hooks; use the model as it was before")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
