"""Where each architecture keeps what `sites` names: modules of activations, and parameters of weight matrices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tunescope.registry import Registry, calling_module

Side = Literal["input", "output"]


class Fused(NamedTuple):
    """One of several matrices that are kept as one, along the outputs: which, and the sizes of all by the config."""

    which: int
    sizes: Callable[[Any], Sequence[int]]


class Matrix(NamedTuple):
    """A weight matrix: the module that keeps it, and the site that it acts on."""

    reads: str
    module: str
    fused: Fused | None = None


At = tuple[str, Side] | tuple[str, Side, Fused]


@dataclass(frozen=True)
class Family:
    """One architecture. Modules of `sites` and `weights` are named from the block on; "" is the block itself.

    Attributes:
        transposed: its modules compute a @ weight.
    """

    embed: str
    blocks: str
    sites: Mapping[str, At]
    weights: Mapping[str, Matrix]
    transposed: bool = False


FAMILIES: Registry[Family] = Registry("architecture")  # by transformers' model_type


def family(name: str, entry: Family) -> Family:
    """Register the map of an architecture, from the top level of a module or a function that it calls.

    Raises:
        InputError: another module has registered one of this name.
    """
    FAMILIES.add(name, entry, calling_module())
    return entry


def _thirds(config: Any) -> Sequence[int]:
    return (config.hidden_size,) * 3


def _heads(config: Any) -> Sequence[int]:
    """Queries, keys and values, where heads share keys and values."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return tuple(size * n for n in (config.num_attention_heads, *(config.num_key_value_heads,) * 2))


def _halves(config: Any) -> Sequence[int]:
    return (config.intermediate_size,) * 2


_GPT2 = Family(
    embed="transformer.wte",
    blocks="transformer.h",
    sites={
        "resid_pre": ("", "input"),
        "attn_in": ("ln_1", "output"),
        "z": ("attn.c_proj", "input"),
        "attn_out": ("attn", "output"),
        "resid_mid": ("ln_2", "input"),
        "mlp_in": ("mlp", "input"),
        "mlp_pre": ("mlp.c_fc", "output"),
        "mlp_post": ("mlp.c_proj", "input"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
    weights={
        "W_Q": Matrix("attn_in", "attn.c_attn", Fused(0, _thirds)),
        "W_K": Matrix("attn_in", "attn.c_attn", Fused(1, _thirds)),
        "W_V": Matrix("attn_in", "attn.c_attn", Fused(2, _thirds)),
        "W_O": Matrix("z", "attn.c_proj"),
        "W_in": Matrix("mlp_in", "mlp.c_fc"),
        "W_out": Matrix("mlp_post", "mlp.c_proj"),
    },
    transposed=True,
)

_LLAMA = Family(
    embed="model.embed_tokens",
    blocks="model.layers",
    sites={
        "resid_pre": ("", "input"),
        "attn_in": ("input_layernorm", "output"),
        "z": ("self_attn.o_proj", "input"),
        "attn_out": ("self_attn", "output"),
        "resid_mid": ("post_attention_layernorm", "input"),
        "mlp_in": ("mlp", "input"),
        "mlp_pre": ("mlp.up_proj", "output"),
        "mlp_post": ("mlp.down_proj", "input"),
        "mlp_out": ("mlp", "output"),
        "resid_post": ("", "output"),
    },
    weights={
        "W_Q": Matrix("attn_in", "self_attn.q_proj"),
        "W_K": Matrix("attn_in", "self_attn.k_proj"),
        "W_V": Matrix("attn_in", "self_attn.v_proj"),
        "W_O": Matrix("z", "self_attn.o_proj"),
        "W_gate": Matrix("mlp_in", "mlp.gate_proj"),
        "W_in": Matrix("mlp_in", "mlp.up_proj"),
        "W_out": Matrix("mlp_post", "mlp.down_proj"),
    },
)

# What attention and the MLP give is normalised before it is added to the stream.
_NORMED_OUTPUTS: Mapping[str, At] = {
    "attn_out": ("post_attention_layernorm", "output"),
    "mlp_out": ("post_feedforward_layernorm", "output"),
}

_GEMMA = replace(_LLAMA, sites={**_LLAMA.sites, **_NORMED_OUTPUTS, "resid_mid": ("pre_feedforward_layernorm", "input")})

# Nothing is normalised before attention and the MLP read it: what they read is the stream itself. resid_mid and mlp_in
# are seen at one place, so that an edit of both must begin with resid_mid's.
_OLMO2 = replace(
    _LLAMA,
    sites={
        **_LLAMA.sites,
        **_NORMED_OUTPUTS,
        "attn_in": ("self_attn", "input"),
        "resid_mid": ("mlp", "input"),
    },
)

_PHI3 = replace(
    _LLAMA,
    sites={**_LLAMA.sites, "mlp_pre": ("mlp.gate_up_proj", "output", Fused(1, _halves))},
    weights={
        **{f"W_{c}": Matrix("attn_in", "self_attn.qkv_proj", Fused(i, _heads)) for i, c in enumerate("QKV")},
        "W_O": _LLAMA.weights["W_O"],
        "W_gate": Matrix("mlp_in", "mlp.gate_up_proj", Fused(0, _halves)),
        "W_in": Matrix("mlp_in", "mlp.gate_up_proj", Fused(1, _halves)),
        "W_out": _LLAMA.weights["W_out"],
    },
)

for _name, _entry in {
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "phi3": _PHI3,
    "olmo2": _OLMO2,
}.items():
    family(_name, _entry)
