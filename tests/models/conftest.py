"""Small models of both architectures, and folders that hold them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tunescope.config import ModelConfig
from tunescope.models.build import build_model
from tunescope.models.checkpoint import save_model
from tunescope.models.tokenizer import build_tokenizer
from tunescope.rng import Stream
from tunescope.world.vocab import Vocab


@pytest.fixture(scope="session")
def words() -> tuple[str, ...]:
    return Vocab(5, (1,), 6).words


@pytest.fixture(scope="session")
def tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    return build_tokenizer(words)


@pytest.fixture(scope="session")
def make(words: tuple[str, ...]) -> Callable[..., PreTrainedModel]:
    """A model of an architecture, the same for the same seed, whose answers depend on the prompt."""

    def model(architecture: str, seed: int = 0) -> PreTrainedModel:
        config = ModelConfig(architecture=architecture, layers=2, heads=2, width=16)
        model = build_model(config, len(words), 32, Stream.named(seed, "models"), torch.device("cpu")).eval()
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
