"""The tokenizer that is saved beside a model: one word, one token."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

EOS_WORD = "<eos>"
PAD_WORD = "<pad>"


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Token i is the word words[i]; text is words between white space.

    Nothing is added before or after a prompt. Batches are padded on the left. Decoding puts single spaces between the
    words. There is no token for unknown words: the tokenizers library raises a plain `Exception` ("WordLevel error:
    Missing [UNK] token from the vocabulary") on text that has one.

    Raises:
        ValueError: a word twice, an empty one or one with white space in it, or no `<eos>` or `<pad>`.
    """
    if len(set(words)) != len(words):
        raise ValueError(
            f"words: each must be there once, got {sorted({w for w in words if words.count(w) > 1})} twice"
        )
    if unusable := [word for word in words if word.split() != [word]]:
        raise ValueError(f"words: {unusable} cannot be told from the white space between words")
    if missing := [word for word in (EOS_WORD, PAD_WORD) if word not in words]:
        raise ValueError(f"words: {' and '.join(missing)} must be among them")
    # No word is empty, so that nothing can stand in for an unknown one.
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=""))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_special(EOS_WORD),
        pad_token=_special(PAD_WORD),
        padding_side="left",
        # Without token_type_ids, which GPT-2 would take for more tokens and Llama would refuse.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _special(word: str) -> AddedToken:
    # single_word: "<eos>s1" is an unknown word, not the two words "<eos> s1".
    return AddedToken(word, single_word=True, normalized=False, special=True)
