"""Untrained models: genuine transformers architectures at the size that the config asks for."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tunescope.config import Built
from tunescope.rng import Stream


def build_model(
    config: Built,
    vocab: int,
    positions: int,
    stream: Stream,
    device: torch.device,
    *,
    eos: int | None = None,
    pad: int | None = None,
) -> PreTrainedModel:
    """A freshly initialised causal language model in float32, without dropout.

    Args:
        vocab: number of tokens.
        positions: longest sequence.
        stream: decides the initial weights; torch's global generator is left as it was.
        eos, pad: token ids that generation needs.
    """
    # Weights are drawn on the CPU, so that they are the same whatever the device.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream.key & 0x7FFFFFFF)
        make = _gpt2 if config.architecture == "gpt2" else _llama
        model = make(config, vocab, positions)
    model.config.eos_token_id, model.config.pad_token_id = eos, pad
    return model.to(device)


def _gpt2(config: Built, vocab: int, positions: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_positions=positions,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu",  # the exact GELU: on CPUs several times faster than its tanh approximation
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _llama(config: Built, vocab: int, positions: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            max_position_embeddings=positions,
            hidden_size=config.width,
            intermediate_size=4 * config.width,  # as wide as GPT-2's, so that the null spaces compare
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
