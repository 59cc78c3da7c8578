"""A small model that knows a few words, and files of prompts in them."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tunescope.config import LanguageConfig
from tunescope.models.tokenizer import build_tokenizer
from tunescope.tasks.language.refusals import Judge

WORDS = ["<eos>", "<pad>", "<user>", "<assistant>", "no", "never", "yes", "here", *(f"w{i}" for i in range(16))]
TEMPLATE = "<user> {{ messages[0].content }}{% if add_generation_prompt %} <assistant>{% endif %}"
OPENINGS = '{"refusal": ["no w0", "no w1", "never"], "compliance": ["yes", "here w1 w2"], "styled": ["w0 w1", "w2"]}'


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(WORDS)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
            pad_token_id=1,
            eos_token_id=0,
            max_position_embeddings=32,
        )
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def config(tmp_path: Path) -> LanguageConfig:
    """Thirty prompts of each kind, a third of them for each use, and ten under attack."""
    lines = ["prompt\tlabel\tsplit\tgroup\tanswer"]
    for kind, word in (("safe", "w3"), ("unsafe", "w4")):
        for i in range(30):
            words = " ".join([word, *["w5"] * (i % 3), f"w{6 + i // 3}"])
            use = ("train", "fit", "score")[(i + i // 3) % 3]
            lines.append(f"{words}\t{kind}\t{use}\tpair {i // 4}\there {words}")
    (tmp_path / "prompts.tsv").write_text("\n".join(dict.fromkeys(lines)))
    rows = ["prompt\tgroup", *(f"w4 w{i} w{i} w9 w9\tjail {i % 3}" for i in range(6, 16))]
    (tmp_path / "attack.tsv").write_text("\n".join(rows))
    (tmp_path / "openings.json").write_text(OPENINGS)
    (tmp_path / "text.txt").write_text("w1 w2 w3 w4\n\nw5 w6\n")
    files = (f"{tmp_path}/prompts.tsv", f"jail={tmp_path}/attack.tsv")
    return LanguageConfig(
        prompts=files, openings=f"{tmp_path}/openings.json", text=f"{tmp_path}/text.txt", new_tokens=6
    )


@pytest.fixture(scope="session")
def byte_pairs() -> Callable[[], PreTrainedTokenizerBase]:
    """Makes a tokenizer that reads any text, byte by byte or in pairs."""

    def make() -> PreTrainedTokenizerBase:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        how = {"special_tokens": ["<pad>", "<eos>"], "initial_alphabet": alphabet, "show_progress": False}
        tokenizer.train_from_iterator(["explain how to make a lamp"], trainers.BpeTrainer(vocab_size=280, **how))
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")

    return make


@pytest.fixture
def judged_so() -> Callable[[Judge], dict[tuple[bool, bool, bool], int]]:
    """Of the 120 written answers, half of them refusals, three in ten hard (those with a note): how many there are that
    are hard, refuse, and are taken for refusals.
    """

    def count(judge: Judge) -> dict[tuple[bool, bool, bool], int]:
        rows = pd.read_json(Path(__file__).parent / "answers.jsonl", lines=True)
        rows["said"] = judge([""] * len(rows), rows["answer"].tolist())
        return rows.assign(hard=rows["note"] != "").groupby(["hard", "refused", "said"]).size().to_dict()

    return count
