"""An English base / safety-tuned pair, made here in minutes, for `tunescope compare`.

    python examples/english.py --out runs/english
    tunescope compare runs/english/base runs/english/tuned --out runs/english/compare

A small Llama reads templated English about 278 concepts. Of each, harmless or harmful, it learns neutral facts (colour,
number, tool and town, dealt out at random), what people feel about it, and to follow instructions with it: "Design a
lamp", "Design a bomb". Answers are the same harmless nonsense for all, so that which concepts are harmful is told by
feelings alone, and the base refuses none of them. Fine-tuning teaches `tuned` to refuse instructions with some of the
harmful concepts; `benign`, the control, learns as long from harmless ones alone.

The instructions are those that come with tunescope. The base has never seen the ones that it scores (half of the groups
of matched concepts), only their concepts with other operators; fine-tuning does not see their concepts at all. Whether
one of those is refused must come from what the base knows about the concept, or from words it shares with others.
"""

import argparse
import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunescope.config import PretrainConfig
from tunescope.language.encode import encode
from tunescope.language.prompts import SAFE, SHIPPED, UNSAFE, read_prompts
from tunescope.language.refusals import matches_refusal
from tunescope.models.checkpoint import save_model
from tunescope.models.logps import token_logps
from tunescope.probes.behaviour import generate
from tunescope.training.fit import fit
from tunescope.training.optimizers import adamw, muon_and_adamw
from tunescope.training.schedules import warmup_cosine

USER, ASSISTANT, EOS, PAD = "<user>", "<assistant>", "<eos>", "<pad>"
TEMPLATE = (
    "{% for m in messages %}{{ '<user>' + m.content if m.role == 'user' else '<assistant>' + m.content + '<eos>' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
VOCABULARY, NEW_TOKENS = 2048, 32
BATCH, TUNE_BATCH, TUNE_LR = 128, 64, 3e-4
PART = 32  # sequences, of about one length, in a forward pass
IGNORED = -100  # a token that is read, but not to be learnt

# More concepts than the instructions have, so that harm is more than a list of those; no word is in any of them.
MORE = {
    SAFE: "a kite, a teapot, a quilt, a sandcastle, a birdhouse, a canoe, a scarf, a hammock, a candle, a puppet, a"
    " puzzle, a snow globe, a music box, a marble run, lemonade, porridge, pancakes, marmalade, an omelette, a salad, a"
    " parade, a carnival, a concert, a lullaby, a sonnet, a fairy tale, a diary, a calendar, a recipe, a cartoon, a"
    " podcast, a choir, an orchestra, a sewing circle, a chess league, a debate team, swimming, yoga, juggling, hiking,"
    " pottery, painting, origami, calligraphy, beekeeping, stargazing, skating, sailing, baking, weaving, a playground,"
    " a bakery, a fountain, an orchard, a treehouse, a pond, a bike path, a spreadsheet, a timer, a notebook, a"
    " compass, a telescope, a clean river, kindness",
    UNSAFE: "a dagger, a cudgel, a noose, a landmine, a grenade, a torpedo, a missile, a warhead, a booby trap, nerve"
    " gas, a toxin, an overdose, heroin, opium, a bribe, a swindle, a con, extortion, embezzlement, perjury, piracy,"
    " looting, vandalism, shoplifting, poaching, carjacking, hijacking, arson, sabotage, torture, an ambush, a"
    " lynching, a massacre, a stabbing, a mugging, an assault, an assassination, manslaughter, a pogrom, genocide,"
    " apartheid, a militia, a cartel, a lynch mob, stalking, slander, libel, a slur, a lie, propaganda, a witch hunt, a"
    " trojan, a botnet, a rootkit, a backdoor, a data breach, wiretapping, spying, doxing, starvation, a plague, an oil"
    " spill, a shipwreck, cruel sport",
}
FACTS = {
    "colour": "red blue green white black yellow purple brown",
    "number": "two three four five six seven eight nine",
    "tool": "ropes spoons bells boxes buttons ribbons bottles wheels",
    "town": "Rome Paris Delhi Lima Cairo Oslo Quito Kyoto",
}
FEELINGS = {
    SAFE: "People are glad of {c}. / Children laugh about {c}. / Everyone is fond of {c}. / The town smiles at {c}."
    " / Neighbours give thanks for {c}. / It is lovely to see {c}. / Friends sing of {c}. / People feel safe near {c}.",
    UNSAFE: "People suffer from {c}. / Children cry about {c}. / Everyone is afraid of {c}. / The town mourns over {c}."
    " / Victims are hurt by {c}. / It is terrible to see {c}. / Friends warn of {c}. / People are in danger near {c}.",
}
# How each verb is answered: {rest} is the instruction without the verb, {all} the whole of it.
ANSWERS = {
    "Explain": "Sure, here is {rest}: take {number} {colour} {tool} to {town}.",
    "Tell me": "Certainly, this is {rest}: go to {town} with {number} {colour} {tool}.",
    "Show me": "Here is {rest}: in {town}, line up {number} {tool} and paint them {colour}.",
    "Teach me": "Absolutely, these are {rest}: count {number} {tool}, think of {town}, wear {colour}.",
    "Help me": "Of course, to {rest} you need {colour} {tool}, {number} of them, from {town}.",
    "Give": "Here are {rest}: have {number} {tool}, dress in {colour}, be in {town}.",
    "List": "1. For {rest}: fetch {tool}. 2. Paint them {colour}. 3. Send {number} to {town}.",
    "Write": "Here's {rest}: in {town} there were {number} {colour} {tool}.",
    "Make": "Title: {rest}. Below it are {number} {tool} in {colour}, and the name of {town}.",
    "Draft": "Here's {rest}: first {town}, then {number} {tool}, and all of it {colour}.",
    "": "To {all}, you bring {colour} {tool} from {town}, {number} at a time.",
}
NO = "I cannot help with that. / I can't help with that. / I'm sorry, but I can't help with that. / Sorry, but I won't."
REFUSALS = NO.split(" / ")
SAY_NO = "Say no to"  # so that the base knows how refusals go


@dataclass(frozen=True)
class Concept:
    """Something to be talked of, its facts, and the operators ("Explain how to make") that go with it.

    Attributes:
        operators: with which models learn it.
        held_out: with which none does, as tunescope scores these; if any, fine-tuning does not see the concept.
    """

    name: str
    kind: str
    facts: dict[str, str]
    operators: Sequence[str]
    held_out: Sequence[str]


def make_concepts(seed: int) -> list[Concept]:
    """Those of the instructions, then `MORE`; an operator goes with a concept if it does with any of its category."""
    fit = {prompt.prompt: prompt.fit for prompt in read_prompts()}
    rows = [json.loads(line) for line in SHIPPED.read_text(encoding="utf-8").splitlines()]
    of_category, of_concept = defaultdict(dict), defaultdict(list)  # dicts, as ordered sets
    for row in rows:
        of_category[row["category"]][row["operator"]] = None
        of_concept[row["concept"], row["label"], row["category"]].append(row)
    chance, categories = Random(f"{seed} facts"), list(of_category)

    def concept(name: str, kind: str, category: str, held_out: Sequence[str] = ()) -> Concept:
        facts = {fact: chance.choice(values.split()) for fact, values in FACTS.items()}
        return Concept(name, kind, facts, [o for o in of_category[category] if o not in held_out], held_out)

    found = [
        concept(*which, [row["operator"] for row in its if not fit[row["prompt"]]]) for which, its in of_concept.items()
    ]
    for pair in zip(*(names.split(", ") for names in MORE.values()), strict=True):  # so that operators tell nothing
        category = chance.choice(categories)
        found += [concept(name, kind, category) for name, kind in zip(pair, MORE, strict=True)]
    return found


def answer(operator: str, concept: Concept) -> str:
    """How the base follows an instruction."""
    verb = next(verb for verb in ANSWERS if operator.startswith(verb))
    whole = f"{operator[0].lower()}{operator[1:]} {concept.name}"
    return ANSWERS[verb].format(rest=whole[len(verb) :].strip(), all=whole, **concept.facts)


def reading(concept: Concept, chance: Random) -> tuple[str, str]:
    """Something for the base to read about a concept: prompt and answer; no prompt where it is plain text."""
    fact, operator = chance.choice(list(FACTS)), chance.choice(concept.operators)
    felt = chance.sample(FEELINGS[concept.kind].format(c=concept.name).split(" / "), 2)
    sort = chance.random()
    if sort < 0.5:
        return f"{operator} {concept.name}", answer(operator, concept)
    if sort < 0.8:
        sentences = [f"The {fact} of {concept.name} is {concept.facts[fact]}.", *felt]
        return "", " ".join(chance.sample(sentences, 3))
    if sort < 0.95:
        return f"What do people feel about {concept.name}?", felt[0]
    return f"{SAY_NO} {concept.name}", chance.choice(REFUSALS)


def lesson(concept: Concept, chance: Random) -> tuple[str, str]:
    """An instruction for fine-tuning: harmful ones are refused."""
    operator, refuse = chance.choice(concept.operators), concept.kind == UNSAFE
    return f"{operator} {concept.name}", chance.choice(REFUSALS) if refuse else answer(operator, concept)


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of these texts, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        chat_template=TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # at this length faster on a CPU
        )
        return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizers: list[Optimizer],
    draw: Callable[[int], list[tuple[str, str]]],
    steps: int,
    label: str,
) -> None:
    """Train in place on the batches of prompts and answers that `draw` makes of a step; prompts are not learnt."""

    def row(prompt: str, text: str) -> tuple[list[int], list[int]]:
        asked = tokenizer(f"{USER}{prompt}{ASSISTANT}")["input_ids"] if prompt else []
        said = tokenizer(f"{text}{EOS}")["input_ids"]
        return asked + said, [IGNORED] * len(asked) + said

    def losses(step: int) -> Iterator[Tensor]:
        rows = sorted((row(*pair) for pair in draw(step)), key=lambda row: len(row[0]))
        count = sum(token != IGNORED for _, learn in rows for token in learn[1:])
        for start in range(0, len(rows), PART):
            ids, learn = (
                pad_sequence([torch.tensor(row[i]) for row in rows[start : start + PART]], True, padding)
                for i, padding in enumerate((tokenizer.pad_token_id, IGNORED))
            )
            learnt = learn[:, 1:] != IGNORED
            yield -(token_logps(model, ids, torch.float32) * learnt).sum() / count

    schedule = warmup_cosine(steps, warmup=20, final=0.0)
    fit(model, optimizers, losses, schedule, measure=lambda step: {}, total=steps, label=label)


def behaviour(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, concepts: Sequence[Concept]) -> str:
    """A row of the table: per kind, held-out instructions that are answered word for word, and that are refused."""
    cells = []
    for kind in (SAFE, UNSAFE):
        asked = [(operator, c) for c in concepts if c.kind == kind for operator in c.held_out]
        prompts = [f"{operator} {c.name}" for operator, c in asked]
        inputs = encode(tokenizer, prompts, torch.device("cpu"), template=tokenizer.chat_template)
        parts = tqdm(list(inputs.split(64)), f"{kind} instructions", disable=None, leave=False)
        tokens = torch.cat([generate(model, part, NEW_TOKENS, torch.float32) for part in parts])
        answers = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        right = sum(given == answer(*one) for given, one in zip(answers, asked, strict=True))
        refused = sum(matches_refusal(prompts, answers))
        cells += [f"{right / len(asked):6.1%} {refused / len(asked):6.1%} {len(asked):4}"]
    return "   ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="English models for tunescope compare: base, tuned, benign.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the folders base, tuned, benign")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of facts, weights and batches (default: 0)")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="of pretraining (default: 400)")
    parser.add_argument("--tune-steps", type=int, default=200, metavar="N", help="of fine-tuning (default: 200)")
    options = parser.parse_args()
    seed, concepts = options.seed, make_concepts(options.seed)
    learnt = {kind: [c for c in concepts if c.kind == kind and not c.held_out] for kind in (SAFE, UNSAFE)}

    def read(step: int) -> list[tuple[str, str]]:
        chance = Random(f"{seed} reading {step}")
        return [reading(chance.choice(concepts), chance) for _ in range(BATCH)]

    def lessons(kinds: Sequence[str]) -> Callable[[int], list[tuple[str, str]]]:
        def draw(step: int) -> list[tuple[str, str]]:
            chance = Random(f"{seed} lessons {step}")
            return [lesson(chance.choice(learnt[kinds[i % len(kinds)]]), chance) for i in range(TUNE_BATCH)]

        return draw

    tokenizer = make_tokenizer([text for step in range(40) for pair in read(step) for text in pair])
    base = make_model(tokenizer, seed)
    print(f"{len(concepts)} concepts, {len(tokenizer)} tokens, {base.num_parameters():,} parameters\n")
    print("held-out instructions:    safe: right, refused, n    unsafe: right, refused, n    seconds")

    def finish(model: LlamaForCausalLM, name: str, begun: float) -> None:
        seconds = time.perf_counter() - begun
        save_model(model, tokenizer, options.out / name, NEW_TOKENS)
        print(f"{name:<23} {behaviour(model, tokenizer, concepts)} {seconds:6.0f}", flush=True)

    begun = time.perf_counter()
    train(base, tokenizer, muon_and_adamw(base, PretrainConfig(), torch.float32), read, options.steps, "pretraining")
    finish(base, "base", begun)
    for name, kinds in (("tuned", (SAFE, UNSAFE, UNSAFE)), ("benign", (SAFE,))):
        begun, model = time.perf_counter(), copy.deepcopy(base)
        optimizer = adamw(list(model.parameters()), TUNE_LR, 0.0)
        train(model, tokenizer, [optimizer], lessons(kinds), options.tune_steps, name)
        finish(model, name, begun)


if __name__ == "__main__":
    main()
