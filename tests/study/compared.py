"""Small models of many families with a planted change, and prompts in words of their own."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tunescope.api import comparison_of
from tunescope.config import Study
from tunescope.models.checkpoint import save_model
from tunescope.models.sites import weight
from tunescope.models.tokenizer import build_tokenizer

WORDS = ["<eos>", "<pad>", "<user>", "<assistant>", "no", "yes", *(f"w{i}" for i in range(14))]
TEMPLATE = "<user> {{ messages[0].content }}{% if add_generation_prompt %} <assistant>{% endif %}"
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "eos_token_id": 0,
    "bos_token_id": 0,
}
PROBES = {"few_prompts": 6, "jacobian_prompts": 2, "jacobian_steps": 2, "draws": 20, "rows": 8}


def texts(kind: str) -> list[str]:
    """Safe prompts are of the lower words, all others of the upper; of two lengths."""
    words = WORDS[6:13] if kind == "safe" else WORDS[13:]
    draws = torch.Generator().manual_seed(len(kind) + 2)
    picked = torch.randint(len(words), (28, 4), generator=draws).tolist()
    return list(dict.fromkeys(" ".join(words[i] for i in row[: 3 + n % 2]) for n, row in enumerate(picked)))


def language(folder: Path) -> dict[str, Any]:
    """Settings of a task whose prompts are written into a folder: safe, unsafe, and both mixed as an attack."""
    files = {kind: texts(kind) for kind in ("safe", "unsafe")}
    files["mixed"] = [f"{a} {b}" for a, b in zip(files["safe"][:9], files["unsafe"][:9], strict=True)]
    for kind, lines in files.items():
        (folder / f"{kind}.txt").write_text("\n".join(lines))
    (folder / "openings.json").write_text('{"refusal": ["no"], "compliance": ["yes"], "styled": ["w0", "w1"]}')
    (folder / "text.txt").write_text("w1 w2 w3 w4 w5\nw6 w7 w8")
    named = [f"{kind}={folder}/{kind}.txt" for kind in files]
    given = {name: str(folder / file) for name, file in (("openings", "openings.json"), ("text", "text.txt"))}
    return {"type": "language", "prompts": named, "new_tokens": 2} | given


def comparison(models: list[str], folder: Path, **settings: Any) -> Study:
    """The study of a base and its fine-tune with few prompts."""
    task = language(folder) | settings.pop("task", {})
    return comparison_of(*models, language=True).changed(
        **{"task": task, "probe": PROBES, "compute": {"device": "cpu"}} | settings
    )


def build(architecture: str, **sizes: int) -> PreTrainedModel:
    torch.manual_seed(0)
    known = CONFIG_MAPPING[architecture]().to_dict()
    config = CONFIG_MAPPING[architecture](**{k: v for k, v in (SIZES | sizes).items() if k in known})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # as initialised, the blocks change next to nothing
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def save(model: PreTrainedModel, folder: Path, words: list[str] = WORDS) -> str:
    tokenizer = build_tokenizer(words)
    tokenizer.chat_template = TEMPLATE
    save_model(model, tokenizer, folder, 4)
    return str(folder)


@torch.no_grad()
def planted(base: PreTrainedModel) -> tuple[PreTrainedModel, torch.Tensor]:
    """W_in of layer 1 changes by a matrix of rank two, all of it in the left null space."""
    tuned, w = deepcopy(base), weight(base, 1, "W_in")
    outside = torch.linalg.svd(w.double()).U[:, w.shape[1] : w.shape[1] + 2]
    delta = (outside @ torch.randn(2, w.shape[1], dtype=torch.float64)).float()
    weight(tuned, 1, "W_in").add_(delta)
    return tuned, delta
