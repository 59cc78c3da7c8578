"""The layout holds: data flows down the layers, and imports point up only."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import tunescope

ROOT = Path(tunescope.__file__).parent
# From the ground up; each imports from those before it only.
LAYERS = (
    "tunescope errors config rng files registry progress",
    "settings",
    "records",
    "models",
    "tasks",
    "training",
    "probes",
    "interventions",
    "attacks",
    "evidence",
    "report",
    "recipes study",
    "explore",
    "api cli",
)
# For whom it is written and what looks for plug-ins: the short API, which brings in what it is asked for.
FRONT = {"tunescope"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}


def part(module: str) -> str:
    """The package or module right below tunescope that a module is of."""
    return module.split(".")[1] if "." in module else module


def imports_of(file: Path) -> set[str]:
    """Every module of tunescope that a file imports, functions' own imports included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {m if m in FILES else str(node.module) for m in modules}
    return {name for name in found if name.split(".")[0] == "tunescope"}


def name_of(file: Path) -> str:
    parts = ("tunescope", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in ROOT.rglob("*.py")}
GRAPH = {name: imports_of(file) for name, file in FILES.items()}
PARTS = {p: {part(m) for name in GRAPH if part(name) == p for m in GRAPH[name]} - {p} for p in map(part, GRAPH)}


def test_the_graph_is_seen() -> None:
    assert GRAPH["tunescope.tasks.world.vocab"] == set()
    assert GRAPH["tunescope.models.logps"] == {f"tunescope.models.{name}" for name in ("hooks", "inputs", "weights")}
    assert {"tunescope.config", "tunescope.tasks.world.grammar"} <= GRAPH["tunescope.tasks.world.world"]
    assert PARTS["study"] >= {"tasks", "models", "training", "attacks", "probes", "interventions", "evidence", "report"}
    assert "study" in PARTS["cli"]  # within a function
    assert all(target in FILES for targets in GRAPH.values() for target in targets)


def test_every_part_has_its_layer() -> None:
    assert set(PARTS) <= set(LEVEL)


def test_imports_point_up_only() -> None:
    wrong = {
        (name, other)
        for name, others in PARTS.items()
        for other in others
        if LEVEL[other] > LEVEL[name] and name not in FRONT
    }
    assert wrong == set()


def test_no_modules_import_each_other() -> None:
    front = {name: others - FRONT for name, others in GRAPH.items() if name not in FRONT}
    list(TopologicalSorter(front).static_order())  # raises CycleError


def test_models_know_no_task_and_the_science_knows_no_task_but_by_its_interface() -> None:
    assert "tasks" not in PARTS["models"]
    for name, others in GRAPH.items():
        if name.startswith(("tunescope.training", "tunescope.probes", "tunescope.attacks", "tunescope.interventions")):
            assert {other for other in others if other.startswith("tunescope.tasks")} <= {"tunescope.tasks.base"}, name


def test_the_report_reads_evidence_and_records_alone() -> None:
    assert PARTS["report"] <= {"evidence", "records", "files", "errors", "progress", "registry", "tunescope"}


def test_evidence_knows_nothing_of_how_it_came_about() -> None:
    assert PARTS["evidence"] <= {"records", "files", "errors", "registry", "tunescope"}


def test_records_know_nothing_of_what_is_measured() -> None:
    assert PARTS["records"] <= {"files", "errors"}


def test_the_command_line_starts_without_torch() -> None:
    """What takes seconds to import waits until it is needed."""
    script = "import sys, tunescope.cli as cli\ntry: cli.main(['sample', '--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "tunescope.recipes" in loaded
    assert not loaded & {"torch", "transformers", "pandas", "matplotlib", "tunescope.study.pipeline"}
