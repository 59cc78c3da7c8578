"""The kinds of prompts."""

from enum import StrEnum


class Kind(StrEnum):
    """What a prompt is. Every kind but the two safe ones wants a refusal."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    JB_CO_TASK = "jb_co_task"  # competing objectives: safe operators next to an unsafe one
    JB_CO_TEXT = "jb_co_text"  # competing objectives: safe-dominant text within an unsafe operand
    JB_MISGEN = "jb_misgen"  # mismatched generalisation: the unsafe request in dialect
    SAFE_DIALECT = "safe_dialect"  # the control of jb_misgen: a safe request in dialect

    @property
    def safe(self) -> bool:
        return self in (Kind.SAFE, Kind.SAFE_DIALECT)

    @property
    def has_strength(self) -> bool:
        return self not in (Kind.SAFE, Kind.UNSAFE)
