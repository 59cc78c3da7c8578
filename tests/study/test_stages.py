"""Stages run when they must, are skipped when they may, and never build on damage."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tunescope.config import PLACE, Config
from tunescope.errors import InapplicableError, InputError
from tunescope.study import steps
from tunescope.study.stages import Place, Stage, run_stage


class Given(Config):
    """Inputs of a stage; where it runs does not count."""

    value: Any = None
    device: str = Field("cpu", json_schema_extra=PLACE)


class Workshop:
    """Stages that write their inputs, and a list of those that ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran = folder, list[str]()

    def stage(self, name: str, inputs: Any = None, after: tuple[Stage, ...] = ()) -> Stage:
        """It writes a file and a folder of two files."""
        outputs = (f"{name}.txt", f"{name}-folder")

        def run(given: Given, at: Place) -> None:
            self.ran.append(name)
            (at.folder / outputs[1]).mkdir(parents=True, exist_ok=True)
            for file in (outputs[0], f"{outputs[1]}/a", f"{outputs[1]}/b"):
                (at.folder / file).write_text(str(given.value))

        return Stage(name, run, Given(value=inputs), after, outputs)

    def run(self, *stages: Stage) -> list[str]:
        """Names of those that were run."""
        del self.ran[:]
        skipped = [run_stage(stage, self.folder).skipped for stage in stages]
        assert [stage.name for stage, skip in zip(stages, skipped, strict=True) if not skip] == self.ran
        return list(self.ran)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "run")


def test_a_stage_runs_once(shop: Workshop, contents: Callable) -> None:
    stage = shop.stage("a", {"steps": 3})
    assert shop.run(stage) == ["a"]
    before = contents(shop.folder)
    assert shop.run(stage) == []
    assert contents(shop.folder) == before


def test_changed_inputs_run_a_stage_and_all_after_it(shop: Workshop) -> None:
    def chain(first: int, second: int) -> list[Stage]:
        a = shop.stage("a", first)
        b = shop.stage("b", second, (a,))
        return [a, b, shop.stage("c", None, (b,)), shop.stage("d", None)]

    assert shop.run(*chain(1, 1)) == ["a", "b", "c", "d"]
    assert shop.run(*chain(1, 2)) == ["b", "c"]
    assert shop.run(*chain(2, 2)) == ["a", "b"]  # b writes what it wrote before, so nothing has changed for c
    assert shop.run(*chain(2, 2)) == []
    assert (shop.folder / "b.txt").read_text() == "2"


NOWHERE = Path("nowhere")


@given(st.dictionaries(st.text(), st.integers() | st.lists(st.floats(allow_nan=False)), min_size=1))
def test_a_fingerprint_hangs_on_values_not_on_order(inputs: dict[str, Any]) -> None:
    stage = Stage("a", lambda *_: None, Given(value=inputs), (), ())
    turned = Given(value=dict(reversed(inputs.items())))
    for same in (turned, Given(value=inputs, device="cuda")):
        assert replace(stage, inputs=same).fingerprint(NOWHERE) == stage.fingerprint(NOWHERE)
    key = next(iter(inputs))
    for other in (
        replace(stage, name="b"),
        replace(stage, inputs=Given(value={**inputs, key: "changed"})),
        replace(stage, after=(stage,)),
        replace(stage, after=(stage, stage)),
    ):
        assert other.fingerprint(NOWHERE) != stage.fingerprint(NOWHERE)


@pytest.mark.parametrize("output", ["a.txt", "a-folder"])
def test_an_output_that_was_deleted_is_made_again(output: str, shop: Workshop, contents: Callable) -> None:
    stages = [shop.stage("a", 1), shop.stage("b", 1)]
    shop.run(*stages)
    before = contents(shop.folder)
    path = shop.folder / output
    path.unlink() if path.is_file() else [*map(Path.unlink, path.iterdir()), path.rmdir()]
    assert shop.run(*stages) == ["a"]
    assert {k: v for k, v in contents(shop.folder).items() if k != "stages/a.json"} == {
        k: v for k, v in before.items() if k != "stages/a.json"
    }


@pytest.mark.parametrize(
    ("damaged", "output", "damage"),
    [
        ("a.txt", "a.txt", lambda path: path.write_text("")),
        ("a-folder/b", "a-folder", lambda path: path.write_text("2")),
        ("a-folder/b", "a-folder", Path.unlink),
    ],
)
def test_damage_is_named_and_nothing_is_touched(
    damaged: str, output: str, damage: Callable, shop: Workshop, contents: Callable
) -> None:
    stages = [shop.stage("a", 1), shop.stage("b", 1)]
    shop.run(*stages)
    damage(shop.folder / damaged)
    before = contents(shop.folder)
    with pytest.raises(InputError) as caught:
        shop.run(*stages)
    message = str(caught.value)
    assert message.startswith(f"{shop.folder / damaged}: ")
    assert "stage a" in message
    assert f"delete {shop.folder / output} and run again" in message
    assert contents(shop.folder) == before
    assert shop.ran == []


def test_damage_does_not_matter_where_the_stage_must_run_anyway(shop: Workshop) -> None:
    shop.run(shop.stage("a", 1))
    (shop.folder / "a.txt").write_text("damaged")
    assert shop.run(shop.stage("a", 2)) == ["a"]
    assert (shop.folder / "a.txt").read_text() == "2"


@pytest.mark.parametrize("marker", [b"", b'{"finger', b"\xff\xfe", b"[]", b"{}"])
def test_a_stage_with_a_broken_marker_runs_again(marker: bytes, shop: Workshop) -> None:
    stage = shop.stage("a")
    shop.run(stage)
    (shop.folder / "stages" / "a.json").write_bytes(marker)
    assert shop.run(stage) == ["a"]
    assert shop.run(stage) == []


class Interrupted(Workshop):
    """A stage that counts to three in a file of unfinished work, and is stopped at `stop`."""

    def counting(self, name: str, inputs: int, stop: int | None) -> Stage:
        def run(given: Given, at: Place) -> None:
            unfinished = at.unfinished
            done = int(unfinished.read_text()) if unfinished.exists() else 0
            for count in range(done + 1, 4):
                self.ran.append(f"{name}{count}")
                unfinished.write_text(str(count))
                if count == stop:
                    raise KeyboardInterrupt
            (at.folder / f"{name}.txt").write_text(str(given.value))

        return Stage(name, run, Given(value=inputs), (), (f"{name}.txt",))

    def stop(self, name: str, inputs: int, at: int) -> None:
        with pytest.raises(KeyboardInterrupt):
            run_stage(self.counting(name, inputs, at), self.folder)
        del self.ran[:]

    def finish(self, name: str, inputs: int) -> list[str]:
        run_stage(self.counting(name, inputs, None), self.folder)
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def counter(tmp_path: Path) -> Interrupted:
    (tmp_path / "stages").mkdir()
    return Interrupted(tmp_path)


def test_unfinished_work_is_gone_on_with_and_then_gone(counter: Interrupted) -> None:
    counter.stop("a", 1, at=1)
    counter.stop("a", 1, at=2)
    assert counter.finish("a", 1) == ["a3"]
    assert counter.finish("a", 1) == []
    assert {path.name for path in (counter.folder / "stages").iterdir()} == {"a.json"}


def test_unfinished_work_of_other_inputs_is_never_gone_on_with(counter: Interrupted) -> None:
    counter.stop("a", 1, at=2)
    counter.stop("a-b", 1, at=2)
    assert counter.finish("a", 2) == ["a1", "a2", "a3"]
    assert counter.finish("a-b", 1) == ["a-b3"]  # another stage's is left alone
    counter.stop("a", 3, at=2)
    assert counter.finish("a", 2) == ["a1", "a2", "a3"]  # no marker is left of a stage begun anew
    assert {path.name for path in (counter.folder / "stages").iterdir()} == {"a.json", "a-b.json"}


def test_what_does_not_apply_to_a_model_is_left_out_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def made() -> Iterator[int]:
        yield 1
        raise InapplicableError("nothing to take out")

    assert list(steps._each(made(), int, "intervention one", "ssft-eta_m")) == [1]
    assert capsys.readouterr().err == "ssft-eta_m: intervention one: nothing to take out\n"
