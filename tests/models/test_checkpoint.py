"""Models come back from disk as they were, and in plain transformers."""

import errno
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from tunescope.models.checkpoint import CheckpointError, load_model, save_model
from tunescope.models.tokenizer import build_tokenizer
from tunescope.tasks.world.vocab import EOS, PAD

Make = Callable[..., PreTrainedModel]
TOKENS = torch.tensor([[7, 3, 9, 11], [12, 8, 2, 7]])


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS, use_cache=False).logits


def test_a_model_comes_back_as_it_was(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, saved: Path, cpu: torch.device
) -> None:
    loaded, words = load_model(saved, cpu)
    assert type(loaded) is type(model)
    assert loaded.config._attn_implementation == "eager"
    assert not loaded.training
    want, got = model.state_dict(), loaded.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) and got[name].dtype is torch.float32 for name in want)
    torch.testing.assert_close(logits(loaded), logits(model))
    assert words.get_vocab() == tokenizer.get_vocab()


def test_attention_can_be_chosen(model: PreTrainedModel, saved: Path, cpu: torch.device) -> None:
    loaded, _ = load_model(saved, cpu, "sdpa")
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(CheckpointError, match="nonsense"):
        load_model(saved, cpu, "nonsense")


def test_tied_weights_stay_tied(saved: Path, cpu: torch.device) -> None:
    loaded, _ = load_model(saved, cpu)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (loaded.config.model_type == "gpt2")
    assert ("lm_head.weight" in load_file(saved / "model.safetensors")) == (not tied)


def test_half_precision_weights_come_back_in_float32(model: PreTrainedModel, folder: Path, cpu: torch.device) -> None:
    half = deepcopy(model).bfloat16()
    half.save_pretrained(folder)
    loaded, _ = load_model(folder, cpu)
    got = loaded.state_dict()
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    assert all(torch.equal(got[name], tensor.float()) for name, tensor in half.state_dict().items())


def test_weights_in_several_files_are_read(model: PreTrainedModel, folder: Path, cpu: torch.device) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_model(folder, cpu, "sdpa")[0]), logits(model))


def test_plain_transformers_answers_greedily(model: PreTrainedModel, words: tuple[str, ...], saved: Path) -> None:
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    prompt = "op1 <sep> s1 s2 op1' s4"
    answer = plain.generate(**tokenizer(prompt, return_tensors="pt"))[0].tolist()
    ids = [words.index(word) for word in prompt.split()]
    want = list(ids)
    for _ in range(3):
        with torch.no_grad():
            want.append(int(model(torch.tensor([want]), use_cache=False).logits[0, -1].argmax()))
        if want[-1] == EOS:
            break
    assert answer == want
    assert (plain.generation_config.eos_token_id, plain.generation_config.pad_token_id) == (EOS, PAD)


def test_batches_of_unlike_length_are_answered_one_by_one(saved: Path) -> None:
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    prompts = ["op1 <sep> s1 s2 op1' s4", "s3", "s5 op2"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    together = plain.generate(**batch)[:, batch["input_ids"].shape[1] :]
    for prompt, answer in zip(prompts, together, strict=True):
        alone = tokenizer(prompt, return_tensors="pt")
        want = plain.generate(**alone)[0, alone["input_ids"].shape[1] :]
        assert answer[: len(want)].tolist() == want.tolist()
        assert (answer[len(want) :] == PAD).all()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_model_gives_the_same_bytes(
    model: PreTrainedModel, words: tuple[str, ...], saved: Path, make: Make, tmp_path: Path, cpu: torch.device
) -> None:
    save_model(make(model.config.model_type), build_tokenizer(words), tmp_path / "again", 3)
    assert contents(tmp_path / "again") == contents(saved)
    for attention in ("eager", "sdpa"):
        save_model(*load_model(saved, cpu, attention), tmp_path / attention, 3)
        assert contents(tmp_path / attention) == contents(saved)


def test_saving_replaces_a_folder_whole(
    tokenizer: PreTrainedTokenizerFast, saved: Path, make: Make, tmp_path: Path, cpu: torch.device
) -> None:
    folder = tmp_path / "deep" / "model"
    save_model(make("gpt2", seed=1), tokenizer, folder, 5)
    (folder / "stale").touch()
    save_model(*load_model(saved, cpu), folder, 3)
    assert contents(folder) == contents(saved)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_leaves_the_model_and_the_settings_of_transformers_alone(
    tokenizer: PreTrainedTokenizerFast, make: Make, tmp_path: Path, cpu: torch.device
) -> None:
    model = make("gpt2").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generation = model.generation_config.to_dict()
    settings = logging.get_verbosity(), logging.is_progress_bar_enabled()
    save_model(model, tokenizer, tmp_path / "model", 3)
    load_model(tmp_path / "model", cpu)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.generation_config.to_dict() == generation
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == settings


def test_a_failed_save_leaves_what_was_there(
    words: tuple[str, ...], saved: Path, folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    tokenizer = build_tokenizer(words)
    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(make("gpt2", seed=1), tokenizer, folder, 3)
    assert contents(folder) == contents(saved)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_all_files_are_equally_readable(saved: Path) -> None:
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_loading_is_silent_and_draws_nothing(saved: Path, cpu: torch.device, capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    load_model(saved, cpu)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
