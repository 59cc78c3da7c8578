"""How models read prompts: formats, tokenizers that must agree, and what a model cannot read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, PreTrainedTokenizerBase

from tunescope.config import LanguageConfig
from tunescope.errors import InputError
from tunescope.models.tokenizer import build_tokenizer
from tunescope.tasks.base import Reader
from tunescope.tasks.language.readers import digest, reader_of, readers_of, require_fits, require_same_tokens
from tunescope.tasks.language.task import build

CPU = torch.device("cpu")
WORDS = ["<eos>", "<pad>", "a", "b", "c"]
TEMPLATE = "{{ messages[0].content }}"


def words(*more: str, template: str | None = None) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer([*WORDS, *more])
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("base", "tuned", "formats", "wanted"),
    [
        (None, None, ("auto", "auto"), (None, None)),
        (None, TEMPLATE, ("auto", "auto"), (None, TEMPLATE)),
        (None, TEMPLATE, ("chat", "auto"), (TEMPLATE, TEMPLATE)),
        (None, TEMPLATE, ("chat", "plain"), (TEMPLATE, None)),
        (TEMPLATE, TEMPLATE, ("auto", "auto"), (TEMPLATE, TEMPLATE)),
        (TEMPLATE, TEMPLATE, ("plain", "chat"), (None, TEMPLATE)),
        (TEMPLATE, None, ("auto", "auto"), (TEMPLATE, None)),
        (None, None, ("chat", "auto"), "base: format is chat"),
        (TEMPLATE, None, ("auto", "chat"), "tuned: format is chat"),
    ],
)
def test_formats(base: str | None, tuned: str | None, formats: tuple, wanted: tuple | str, tmp_path: Path) -> None:
    for name, template in (("base", base), ("tuned", tuned)):
        words(template=template).save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in ("base", "tuned")}
    of = dict(zip(folders, formats, strict=True))
    if isinstance(wanted, str):
        with pytest.raises(InputError, match=wanted):
            readers_of(folders, of)
        return
    readers = readers_of(folders, of)
    assert tuple(readers[name].template for name in folders) == wanted


def test_an_adapter_without_a_tokenizer_reads_as_its_base(tmp_path: Path) -> None:
    words(template=TEMPLATE).save_pretrained(tmp_path / "base")
    for name in ("bare", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    words(template="other {{ messages[0].content }}").save_pretrained(tmp_path / "own")
    folders = {name: tmp_path / name for name in ("base", "bare", "own")}
    readers = readers_of(folders, dict.fromkeys(folders, "auto"))
    assert readers["bare"].tokenizer is readers["base"].tokenizer
    assert readers["bare"].template == TEMPLATE
    assert readers["own"].template == "other {{ messages[0].content }}"


def test_a_template_that_cannot_be_chosen_is_an_input_error() -> None:
    tokenizer = words()
    tokenizer.chat_template = {"one": TEMPLATE, "two": TEMPLATE}
    with pytest.raises(InputError, match="tuned: its chat template cannot be read"):
        reader_of("tuned", tokenizer, "auto")
    assert reader_of("tuned", tokenizer, "plain").template is None


def test_two_tokenizers_must_agree(tmp_path: Path) -> None:
    require_same_tokens(words(), words("more"), ("x", "y"))
    with pytest.raises(InputError, match=r"'x' and 'y': two tokenizers: 'more' is token 5 in one, none in the other"):
        require_same_tokens(words("more"), words(), ("x", "y"))
    words("d").save_pretrained(tmp_path / "base")
    words("e", "d").save_pretrained(tmp_path / "tuned")
    folders = {name: tmp_path / name for name in ("base", "tuned")}
    with pytest.raises(InputError, match=r"base' and .*tuned': two tokenizers: 'd' is token 5 in one, 6 in the other"):
        readers_of(folders, dict.fromkeys(folders, "auto"))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"vocab_size": 24, "max_position_embeddings": 14}, None),
        (
            {"vocab_size": 24, "max_position_embeddings": 10},
            r"takes 10 tokens; the longest .* prompt and its answer have",
        ),
        ({"vocab_size": 23, "max_position_embeddings": 64}, "token 23 of .* prompts is none of the model's 23"),
        ({"vocab_size": 5, "max_position_embeddings": 64}, "is none of the model's 5"),
    ],
)
def test_prompts_must_fit_the_model(
    config: LanguageConfig, tokenizer: PreTrainedTokenizerBase, sizes: dict[str, int], says: str | None, tmp_path: Path
) -> None:
    task = build(config, CPU, Reader(tokenizer))
    if says is None:
        require_fits(task, LlamaConfig(**sizes), tmp_path)
    else:
        with pytest.raises(InputError, match=says):
            require_fits(task, LlamaConfig(**sizes), tmp_path)


def test_prompts_in_forms_must_fit_the_model(byte_pairs: Callable[[], PreTrainedTokenizerBase], tmp_path: Path) -> None:
    def longest(*wrappers: str) -> int:
        task = build(LanguageConfig(wrappers=wrappers), CPU, Reader(byte_pairs()))
        every = [part.inputs for part in task.parts.values()]
        every += [task.in_form(kind, "score", 1.0).inputs for kind in task.forms]
        every += [task.in_form(kind, "train", 1.0).inputs for kind in task.lesson_kinds]
        openings = [len(opening) for each in task.opening_ids for opening in each]
        return max(inputs.sequence.shape[1] for inputs in every) + max(task.answer_length, *openings)

    sizes, plain, role = {"vocab_size": 280}, longest(), longest("role")
    assert role > plain + 50
    for wrappers, most, fits in (((), plain, True), (("role",), plain, False), (("role",), role, True)):
        task = build(LanguageConfig(wrappers=wrappers), CPU, Reader(byte_pairs()))
        config = LlamaConfig(**sizes, max_position_embeddings=most)
        if fits:
            require_fits(task, config, tmp_path)
        else:
            with pytest.raises(InputError, match=f"takes {plain} tokens; the longest .*_role prompt and its answer"):
                require_fits(task, config, tmp_path)


def test_the_digest_tells_what_is_read(config: LanguageConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    def of(reader: Reader, openings: str | None = None) -> str:
        if openings:
            Path(str(config.openings)).write_text(openings)
        return digest(build(config, CPU, reader))

    plain, chat = Reader(tokenizer), Reader(tokenizer, "<user> {{ messages[0].content }} <assistant>")
    kept = Reader(tokenizer, None, {"w4 w6 w6 w9 w9": "here w1"})
    digests = [of(plain), of(chat), of(kept)]
    assert of(plain) == digests[0]
    digests.append(of(plain, '{"refusal": ["no w0", "no w1"], "compliance": ["yes", "here w1 w2"]}'))
    assert len(set(digests)) == 4
