"""Small models of both architectures, and folders that hold them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tunescope.models.checkpoint import save_model
from tunescope.models.tokenizer import build_tokenizer
from tunescope.tasks.world.vocab import EOS, PAD, Vocab

HEADS = 2


def sizes(architecture: str, vocab: int, positions: int, layers: int, width: int) -> dict[str, object]:
    tokens: dict[str, object] = {"vocab_size": vocab, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if architecture == "gpt2":
        return {
            "n_layer": layers,
            "n_head": HEADS,
            "n_embd": width,
            "n_positions": positions,
            "activation_function": "gelu",
            **tokens,
        }
    blocks = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS if architecture == "llama" else 1}
    return {**blocks, **heads, "max_position_embeddings": positions, **tokens}


@pytest.fixture(scope="session")
def build() -> Callable[..., PreTrainedModel]:
    """An untrained model of an architecture, the same for the same seed."""

    def model(
        architecture: str,
        vocab: int = 30,
        positions: int = 32,
        *,
        layers: int = 2,
        width: int = 16,
        seed: int = 0,
        **more: object,
    ) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = CONFIG_MAPPING[architecture](**(sizes(architecture, vocab, positions, layers, width) | more))
            return AutoModelForCausalLM.from_config(config).eval()

    return model


@pytest.fixture(scope="session")
def words() -> tuple[str, ...]:
    return Vocab(5, (1,), 6).words


@pytest.fixture(scope="session")
def tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    return build_tokenizer(words)


@pytest.fixture(scope="session")
def make(words: tuple[str, ...], build: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """A model of an architecture, the same for the same seed, whose answers depend on the prompt."""

    def model(architecture: str, seed: int = 0) -> PreTrainedModel:
        model = build(architecture, len(words), seed=seed, eos_token_id=EOS, pad_token_id=PAD)
        with torch.no_grad():  # as initialised, the blocks change next to nothing
            for parameter in model.parameters():
                parameter.mul_(10)
        return model

    return model


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, make: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Shared by all tests: not to be changed."""
    return make(request.param)


@pytest.fixture(scope="session")
def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests: not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "saved"
    save_model(model, tokenizer, folder, 3)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))
