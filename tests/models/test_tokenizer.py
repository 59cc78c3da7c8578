"""One word, one token: text and ids are the same thing written in two ways."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunescope.models.tokenizer import build_tokenizer
from tunescope.tasks.world.vocab import EOS, PAD, Vocab

VOCAB = Vocab(10, (0, 0, 1, 1, 2, 2), 12)
WORDS = VOCAB.words
BUILT = build_tokenizer(WORDS)


@pytest.fixture(scope="module", params=["built", "saved"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    if request.param == "built":
        return BUILT
    folder = tmp_path_factory.mktemp("tokenizer")
    BUILT.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_ids_are_in_the_order_of_the_words(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == len(WORDS)
    assert tokenizer.convert_ids_to_tokens(list(range(len(WORDS)))) == list(WORDS)
    for index, word in enumerate(WORDS):
        assert tokenizer(word)["input_ids"] == [index]
        assert tokenizer.decode([index]) == word


def test_a_prompt_is_its_words_and_nothing_else(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "op1' <sep> op1'' <stop> s3 d3 <null> <eos> <pad>"
    ids = [WORDS.index(word) for word in text.split()]
    encoded = tokenizer(text)
    assert dict(encoded) == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=40))
def test_every_sequence_survives_the_way_there_and_back(ids: list[int]) -> None:
    text = VOCAB.text(ids)
    assert BUILT(text)["input_ids"] == ids
    assert BUILT.decode(ids) == text


def test_amounts_of_white_space_do_not_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("  s1\t<eos>\n s2 ")["input_ids"] == tokenizer("s1 <eos> s2")["input_ids"]


def test_end_and_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS, PAD)
    batch = tokenizer(["s1", "s1 s2 s3"], padding=True)
    s1, s2, s3 = (WORDS.index(word) for word in ("s1", "s2", "s3"))
    assert batch["input_ids"] == [[PAD, PAD, s1], [s1, s2, s3]]
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
    assert tokenizer.decode([PAD, PAD, s1, EOS], skip_special_tokens=True) == "s1"
    assert tokenizer.decode([WORDS.index("<sep>"), s1], skip_special_tokens=True) == "<sep> s1"


@pytest.mark.parametrize("text", ["nonsense", "s1 nonsense s2", "<eos>s1", "s1<sep>", "op1'''", "S1", "<unk>", "op1 '"])
def test_unknown_words_are_an_error(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    with pytest.raises(Exception, match="WordLevel error"):
        tokenizer(text)


def test_a_word_that_looks_like_a_token_for_unknown_ones_is_none() -> None:
    tokenizer = build_tokenizer(["<pad>", "<eos>", "<unk>"])
    assert tokenizer("<unk>")["input_ids"] == [2]
    with pytest.raises(Exception, match="WordLevel error"):
        tokenizer("nonsense")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["<pad>", "<eos>", "a", "b", "a"], r"\['a'\] twice"),
        (["<pad>", "<eos>", ""], r"\[''\] cannot be told"),
        (["<pad>", "<eos>", "a b", "c"], r"\['a b'\] cannot be told"),
        (["<pad>", "a"], "<eos> must be among them"),
        (["a"], "<eos> and <pad> must be among them"),
    ],
)
def test_words_that_cannot_be_tokens_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tokenizer(words)


def test_the_same_words_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_tokenizer(WORDS).save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "tokenizer.json" in files
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
