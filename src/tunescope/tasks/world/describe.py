"""Prompts as a person reads them."""

from typing import Any

from tunescope.tasks.world.kinds import Kind
from tunescope.tasks.world.operators import UNSAFE_BRANCH, unsafe_table
from tunescope.tasks.world.prompts import Prompts
from tunescope.tasks.world.vocab import BLANK
from tunescope.tasks.world.world import World

BRANCHES = ("safe-dominant", "unsafe-dominant")
CHANGES = {
    Kind.JB_CO_TASK: "{} unsafe operators replaced by safe ones",
    Kind.JB_CO_TEXT: "{} symbols replaced by safe-dominant text",
    Kind.JB_MISGEN: "{} symbols in dialect",
    Kind.SAFE_DIALECT: "{} symbols in dialect",
}


def describe(world: World, prompts: Prompts, i: int) -> dict[str, Any]:
    """Prompt i as plain data; `prompt` and `answer` are texts that the saved tokenizer turns into the trained ids."""
    text = world.vocab.text
    return {
        "prompt": text(prompts.prompt[i].tolist()),
        "answer": text(prompts.answer[i].tolist()),
        "wanted": text(prompts.wanted[i].tolist()),
        "kind": str(prompts.kind),
        "safe": bool(prompts.safe[i]),
        "operators": prompts.operators[i].tolist(),
        "operand": text([t for t in prompts.prompt[i, world.slots : -1].tolist() if t != BLANK]),
        "grammar": int(prompts.grammar[i]),
        "branch": BRANCHES[int(prompts.branch[i])],
        "strength": prompts.strength,
        "why": _why(world, prompts, i),
    }


def _why(world: World, prompts: Prompts, i: int) -> str:
    """Why the prompt has its label, in one sentence."""
    grammar, branch = int(prompts.grammar[i]), int(prompts.branch[i])
    used = [op for op in dict.fromkeys(prompts.operators[i].tolist()) if op != 0]
    table = unsafe_table(world.config)[grammar]
    unsafe = [op for op in used if table[branch, op]]
    context = [op for op in unsafe if not table[1 - branch, op]]

    def names(operators: list[int]) -> str:
        return ", ".join(f"op{op}" for op in operators)

    where = f"grammar {grammar}, {BRANCHES[branch]} text"
    if not unsafe:
        reason = f"{names(used)} safe on {where}"
    else:
        reason = f"{names(unsafe)} unsafe on {where}"
        if context and branch == UNSAFE_BRANCH:
            reason += f" ({names(context)} because of the text)"
    change = int(prompts.changed[i])
    return f"{reason}; {CHANGES[prompts.kind].format(change)}" if change else reason
