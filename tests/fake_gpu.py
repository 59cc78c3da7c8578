"""A GPU for tests, made of main memory: its tensors say that they lie on cuda:0, and cannot be mixed with the CPU's.

What runs on it names no device of its own, and moves what it reads. What a real one adds (kernels, memory, speed) is
not tested here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from transformers import PreTrainedModel

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
ATEN = torch.ops.aten
COPIES = (ATEN.copy_.default, ATEN._to_copy.default)
INDEXED = (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default, ATEN._index_put_impl_.default)


class OnGpu(Tensor):
    """Main memory that is said to be a GPU's."""

    there: Tensor

    @staticmethod
    def __new__(cls, there: Tensor) -> "OnGpu":
        made = Tensor._make_subclass(cls, there, there.requires_grad)
        made.there = there
        return made

    # Of Python alone: in C++, where gradients are booked, it is the CPU's.
    device = property(lambda self: GPU)
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)

    def cpu(self, *_: Any) -> Tensor:
        return ATEN._to_copy.default(self, device=CPU)

    def tolist(self) -> Any:
        return self.there.detach().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.there})"

    def __format__(self, spec: str) -> str:
        return format(self.there, spec)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if force:
            return self.there.numpy(force=True)
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class FakeGpu(TorchDispatchMode):
    """Inside the block tensors may be made on cuda:0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """`to`, which asks C++ for the devices, there is none of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            where = kwargs.pop("device")
            return _moved(func(*args, **kwargs), where)
        if func is scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is not Tensor.to:
            return func(*args, **kwargs)
        tensor, *more = args
        return _moved(tensor, *more, **kwargs)


def _moved(tensor: Tensor, *args: Any, copy: bool = False, other: Tensor | None = None, **kwargs: Any) -> Tensor:
    like = other if other is not None else next((each for each in args if isinstance(each, Tensor)), None)
    if like is not None:
        where, dtype = like.device, like.dtype
    else:
        where, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    where, dtype = where or tensor.device, dtype or tensor.dtype
    if not copy and (where.type, dtype) == (tensor.device.type, tensor.dtype):
        return tensor
    return ATEN._to_copy.default(tensor, dtype=dtype, device=where)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, is_causal: bool = False, **more: Any
) -> Tensor:
    """torch's own makes its mask in C++."""
    if more.get("enable_gqa"):
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
    scores = q @ k.mT * (more.get("scale") or q.shape[-1] ** -0.5)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is None or attn_mask.dtype != torch.bool:
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v
    some = attn_mask.any(-1, keepdim=True)  # where all is masked there is nothing, as in torch's own
    return scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min).softmax(-1) * some @ v


def _tied(move: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """A real GPU moves what is in a parameter; here there is another parameter, and what was tied is two."""

    def moved(model: PreTrainedModel, *args: Any, **kwargs: Any) -> PreTrainedModel:
        move(model, *args, **kwargs).tie_weights()
        return model

    return moved


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the block there is a GPU, and it is what `auto` stands for."""
    cuda = {"is_available": lambda: True, "device_count": lambda: 1, "synchronize": lambda *_: None}
    cuda |= {
        "_lazy_init": lambda: None,
        "is_bf16_supported": lambda **_: False,
        "get_device_name": lambda *_: "a GPU of main memory",
    }
    with monkeypatch.context() as patched, FakeGpu(), _Moves():
        for name, stand_in in cuda.items():
            patched.setattr(torch.cuda, name, stand_in)
        patched.setattr(PreTrainedModel, "to", _tied(PreTrainedModel.to))
        replaced = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # they become tensors of another class
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(replaced)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves, spec = tree_flatten((args, kwargs))
    wrapped = [each for each in leaves if isinstance(each, OnGpu)]
    wanted = kwargs.get("device")
    if func is ATEN.copy_.default:
        there = isinstance(args[0], OnGpu)
    else:
        there = bool(wrapped) if wanted is None else torch.device(wanted).type == "cuda"
    in_backward = torch._C._current_autograd_node() is not None  # where C++ fills up gradients with zeros of its own
    if wrapped and func not in COPIES and not in_backward:
        _same_device(func, leaves, args)
    if not wrapped and not there:
        return func(*args, **kwargs)
    plain, options = tree_unflatten([each.there if isinstance(each, OnGpu) else each for each in leaves], spec)
    out = func(*plain, **(options if wanted is None else {**options, "device": CPU}))
    if not there:
        return out
    made = tree_map_only(Tensor, OnGpu, out)
    return return_and_correct_aliasing(func, args, kwargs, made) if wrapped else made


def _same_device(func: Any, leaves: list[Any], args: Any) -> None:
    """As CUDA: numbers may come from anywhere, and so may indices.

    Raises:
        RuntimeError: a tensor of the CPU is among those of the GPU.
    """
    looked_at = tree_flatten([args[0], *args[2:]])[0] if func in INDEXED else leaves
    if any(isinstance(each, Tensor) and each.dim() and not isinstance(each, OnGpu) for each in looked_at):
        raise RuntimeError(f"{func}: all tensors must be on the same device, found at least two, cuda:0 and cpu")
