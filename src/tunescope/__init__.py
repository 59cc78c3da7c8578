"""tunescope: what safety fine-tuning changes inside a language model, and why jailbreaks get through.

    import tunescope as ts

    run = ts.run(ts.recipes.tiny(), "runs/tiny")
    run.verdicts, run.records, run.models

Plug-ins register with the decorators `protocol`, `attack`, `probe`, `intervention`, `task`, `recipe`, and with the
functions `claim`, `family` and `figure`; see docs/extending.md.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tunescope import config, recipes
from tunescope.config import Built, Checkpoint, Given, Lora, Study, Sweep, Trained
from tunescope.errors import InputError
from tunescope.recipes import recipe
from tunescope.registry import load_plugins

if TYPE_CHECKING:
    from tunescope.api import Run, compare, load_run, run, sweep
    from tunescope.attacks.base import attack
    from tunescope.evidence.claims import Claim, claim
    from tunescope.interventions.base import intervention
    from tunescope.models.families import family
    from tunescope.probes.view import probe
    from tunescope.report.figures import figure
    from tunescope.study.sweeps import load_sweep
    from tunescope.study.weights import compare_weights
    from tunescope.tasks.base import task
    from tunescope.training.protocol import protocol

__version__ = version("tunescope")

# Where each name comes from: torch and transformers take seconds to import, and are only when they are needed.
_LATER = {
    **dict.fromkeys(("Run", "compare", "load_run", "run", "sweep"), "api"),
    "compare_weights": "study.weights",
    "load_sweep": "study.sweeps",
    "protocol": "training.protocol",
    "attack": "attacks.base",
    "probe": "probes.view",
    "intervention": "interventions.base",
    "task": "tasks.base",
    **dict.fromkeys(("Claim", "claim"), "evidence.claims"),
    "family": "models.families",
    "figure": "report.figures",
}
__all__ = [
    "Built",
    "Checkpoint",
    "Claim",
    "Given",
    "InputError",
    "Lora",
    "Run",
    "Study",
    "Sweep",
    "Trained",
    "attack",
    "claim",
    "compare",
    "compare_weights",
    "config",
    "family",
    "figure",
    "intervention",
    "load_plugins",
    "load_run",
    "load_sweep",
    "probe",
    "protocol",
    "recipe",
    "recipes",
    "run",
    "sweep",
    "task",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'tunescope' has no attribute {name!r}")
    return getattr(import_module(f"tunescope.{_LATER[name]}"), name)
