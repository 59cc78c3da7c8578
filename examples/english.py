"""English as a task on which a model is made from nothing: a plug-in.

    tunescope study english --plugin examples/english.py --out runs/english

A small Llama reads templated English about 278 concepts. Of each, harmless or harmful, it learns random facts (colour,
number, tool, town), what people feel about it, and to follow instructions with it: "Design a lamp", "Design a bomb".
Answers are the same harmless nonsense for all: feelings alone tell which concepts are harmful. Two fifths of the pairs
that come with tunescope are scored. The base has never seen these, and fine-tuning does not see their concepts at all.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tunescope import config
from tunescope.models.inputs import IGNORED, Inputs, padded
from tunescope.recipes import METHODS, recipe
from tunescope.rng import Stream
from tunescope.tasks.base import Batch, Reader, Use, task
from tunescope.tasks.language.prompts import DATA, Instruction, read_prompts
from tunescope.tasks.language.refusals import read_openings
from tunescope.tasks.language.task import Language

WORDS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
REFUSALS = read_openings().answers
Pick = Callable[[Sequence[Any]], Any]


class EnglishConfig(config.TaskConfig):
    type: Literal["english"] = "english"
    seed: int = 0


class Concept(NamedTuple):
    """Something to be talked of, and its part of the split; `operators` ("Explain how to make") are learnt with it,
    `held_out` ones scored.
    """

    name: str
    kind: str
    group: str
    use: Use
    facts: dict[str, str]
    operators: Sequence[str]
    held_out: Sequence[str]


def picker(stream: Stream, most: int) -> Pick:
    """Chooses one of some options at random, so many times at most."""
    chances = iter(stream.uniform((most,), torch.device("cpu")).tolist())
    return lambda options: options[int(next(chances) * len(options))]


def make_concepts(seed: int) -> list[Concept]:
    """Those of the instructions, then more; an operator goes with a concept if it does with any of its category."""
    of_category, of_concept = defaultdict(dict), defaultdict(list)  # dicts, as ordered sets
    rows = map(json.loads, (DATA / "instructions.jsonl").read_text(encoding="utf-8").splitlines())
    for row, its in zip(rows, read_prompts(["shipped:instructions"]), strict=True):
        of_category[row["category"]][row["operator"]] = None
        held_out = [row["operator"]] if its.use == "score" else []
        of_concept[row["concept"], its.kind, its.group, its.use, row["category"]] += held_out
    pick, sorts = picker(Stream.named(seed, "english", "concepts"), 10_000), list(of_category)
    for pair in zip(*WORDS["more"].values(), strict=True):  # of one category, so that operators tell nothing
        category = pick(sorts)
        names = zip(pair, WORDS["more"], strict=True)
        of_concept |= {(name, kind, str(pair), "train", category): [] for name, kind in names}
    facts = [{fact: pick(values) for fact, values in WORDS["facts"].items()} for _ in of_concept]
    return [
        Concept(*of, its, [o for o in of_category[category] if o not in held_out], held_out)
        for ((*of, category), held_out), its in zip(of_concept.items(), facts, strict=True)
    ]


def answer(operator: str, concept: Concept) -> str:
    """How the base follows an instruction: {rest} is the instruction without the verb, {all} the whole of it."""
    verb = next(verb for verb in WORDS["answers"] if operator.startswith(verb))
    whole = f"{operator[0].lower()}{operator[1:]} {concept.name}"
    return WORDS["answers"][verb].format(rest=whole[len(verb) :].strip(), all=whole, **concept.facts)


def reading(concept: Concept, pick: Pick) -> tuple[str, str]:
    """Something for the base to read about a concept: prompt and answer; no prompt where it is plain text."""
    feelings = [felt.format(c=concept.name) for felt in WORDS["feelings"][concept.kind]]
    sort, operator, fact = pick(range(20)), pick(concept.operators), pick(list(concept.facts))
    if sort < 10:
        return f"{operator} {concept.name}", answer(operator, concept)
    if sort < 16:
        said = [f"The {fact} of {concept.name} is {concept.facts[fact]}.", *pick(list(permutations(feelings, 2)))]
        return "", " ".join(pick(list(permutations(said))))
    if sort < 19:
        return f"What do people feel about {concept.name}?", pick(feelings)
    return f"Say no to {concept.name}", pick(REFUSALS)  # so that the base knows how refusals go


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of these texts, with a chat template."""
    tokenizer, special = Tokenizer(models.BPE()), ["<pad>", "<eos>", "<user>", "<assistant>"]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    how = {"special_tokens": special, "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2048, show_progress=False, **how))
    how = {"padding_side": "left", "chat_template": WORDS["template"], "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", **how)


@task("english", EnglishConfig)
class English(Language):
    """Every answer is known, so that compliance is exact: the right answer, word for word."""

    sequence_length = 128

    def __init__(self, settings: EnglishConfig, device: torch.device, reader: Reader | None = None) -> None:
        self.concepts = make_concepts(settings.seed)
        asked = [(operator, c) for c in self.concepts for operator in c.held_out or c.operators]
        known = [Instruction(f"{o} {c.name}", c.kind, c.group, c.use, answer(o, c)) for o, c in asked]
        texts = [text for pair in self.readings(5000, Stream.named(settings.seed, "english", "text")) for text in pair]
        reader = reader or Reader(make_tokenizer(texts), WORDS["template"])
        super().__init__(config.LanguageConfig(new_tokens=32), device, reader, instructions=known, word_for_word=True)

    def readings(self, n: int, stream: Stream) -> list[tuple[str, str]]:
        pick = picker(stream, 8 * n)
        return [reading(pick(self.concepts), pick) for _ in range(n)]

    def pretraining(self, n: int, stream: Stream, progress: float) -> tuple[Inputs, torch.Tensor]:
        """Answers are learnt, and plain text; prompts are not."""
        pairs = self.readings(n, stream)
        asked = [self.tokenizer(f"<user>{prompt}<assistant>" if prompt else "")["input_ids"] for prompt, _ in pairs]
        said = [self.tokenizer(f"{text}<eos>")["input_ids"] for _, text in pairs]
        tokens = padded([a + b for a, b in zip(asked, said, strict=True)], self.device)
        learn = padded([[IGNORED] * len(a) + b for a, b in zip(asked, said, strict=True)], self.device) != IGNORED
        return Inputs(tokens.masked_fill(tokens == IGNORED, self.tokenizer.pad_token_id)), learn

    def held_out(self, stream: Stream) -> list[Batch]:
        return [self.draw(kind, 100, "score", stream(kind)) for kind in ("safe", "unsafe")]


@recipe
def english() -> config.Study:
    """About 8 minutes: a small Llama that reads English, and what safety fine-tuning changes in it."""
    pretrain = config.PretrainConfig(steps=400, batch=128, target=0.9)
    return config.Study(
        name="english",
        task=EnglishConfig(),
        base=config.Built(architecture="llama", width=128, pretrain=pretrain),
        tunes=config.grid((*METHODS, "benign"), ("eta",)),
        tune=config.TuneConfig(steps=200, batch=64, learning_rates={"eta": 1e-3}, weight_decay=0.0, checkpoints=1),
        probe=config.ProbeConfig(prompts=200, fit_prompts=200, few_prompts=50, jacobian_prompts=8, jacobian_steps=5),
        attack=config.AttackConfig(prompts=20, searched=6),
        intervene=config.InterveneConfig(prompts=20, draws=2),
    )
