"""Sweeps: points of a grid, stages in common done once, tables and a page over all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import tunescope as ts
from tunescope import cli
from tunescope.config import Sweep, checked
from tunescope.errors import InputError
from tunescope.records.tables import KEYS
from tunescope.report.sweep import render_sweep
from tunescope.study.sweeps import points_of, run_sweep

pytestmark = pytest.mark.usefixtures("plugged")
QUIET = ["attack", "intervene", "overlap"]


@pytest.fixture
def spec(small_study: list[str], tmp_path: Path) -> Callable[..., Path]:
    """A sweep of the small study, as a file."""
    settings = dict(each.split("=", 1) for each in small_study[3:])
    changes = {key: yaml.safe_load(value) for key, value in settings.items()} | {"tunes": ["ssft-eta_m", "seen-eta_m"]}

    def write(**more: Any) -> Path:
        about = {"name": "few", "recipe": "tiny", "changes": changes, "seeds": [0, 1, 2], "skip": QUIET} | more
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(about))
        return file

    return write


def of(**settings: Any) -> Sweep:
    return checked(Sweep, {"name": "few", "recipe": "tiny"} | settings)


def test_a_grid_and_a_list_make_a_point_for_each_combination() -> None:
    listed = [{"tune.batch": 8}, {"tune.batch": 16, "tune.warmup": 2}]
    points = points_of(of(grid={"base.width": [16, 32]}, points=listed))
    assert [point.changes for point in points] == [
        {**each, "base.width": width} for each in listed for width in (16, 32)
    ]
    assert [(point.study.tune.batch, point.study.base.width) for point in points] == [
        (8, 16),
        (8, 32),
        (16, 16),
        (16, 32),
    ]
    assert points[0].name == "tune.batch=8,base.width=16"
    warmups = [point.study.tune.warmup for point in points]
    assert [point.setting("tune.warmup") for point in points] == warmups == [10, 10, 2, 2]
    assert [points[0].setting(key) for key in ("tunes.0.protocol", "tunes.99.protocol", "no.such")] == [
        "ssft",
        None,
        None,
    ]


def test_names_of_points_are_names_of_folders() -> None:
    values = ["../../x", "a/b", "a b", "x" * 300]
    names = [point.name for point in points_of(of(grid={"name": values}, points=[{"tune.steps": 7}]))]
    assert len({*names}) == len(values)
    assert all(Path(name).name == name and len(name) < 80 for name in names)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": {"base.width": []}}, "grid.base.width: there are no values"),
        ({}, "there is nothing to sweep"),
        ({"grid": {"base.width": [16]}, "sedes": [1]}, "sedes: unknown key. Choose from: name"),
        ({"grid": {"base.width": [16]}, "seeds": [1, 1]}, "seeds: one is there twice"),
    ],
)
def test_a_spec_that_is_none_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        of(**settings)


def test_points_must_differ() -> None:
    with pytest.raises(InputError, match=r"'tune.steps=200' is the same study as 'tune.steps=200.0'"):
        points_of(of(points=[{"tune.steps": 200.0}, {"tune.steps": 200}]))
    with pytest.raises(InputError, match="unknown key 'widht'"):
        points_of(of(grid={"base.widht": [16, 32]}))
    with pytest.raises(InputError, match="Unknown recipe 'none'"):
        points_of(of(recipe="none", grid={"base.width": [16, 32]}))


@pytest.mark.slow
def test_a_sweep_from_the_command_line_to_its_tables(
    spec: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["sweep", str(spec(grid={"tune.steps": [4, 6]})), "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(out / "report.html")
    # A base is pretrained, and measured, once for each seed.
    for stage in ("pretrain", "behave-base", "probe-base"):
        assert [line.endswith("done before") for line in said.err.splitlines() if f" {stage}: " in line] == (
            [False, True] * 3
        )
    assert not any(line.endswith("done before") for line in said.err.splitlines() if " tune-ssft" in line)
    swept = ts.load_sweep(out)
    effects = swept.effects
    assert {*effects["point"]} == {"tune.steps=4", "tune.steps=6"} == {*swept.records["point"]}
    assert {*effects["tune.steps"]} == {"4", "6"}
    assert {*effects["runs"]} == {3}
    assert all(effects["outcome"] != "")
    # What a study of these three seeds says of the claim is what the table says.
    joint = ts.load_run(out / "points/tune.steps=4")
    mine = effects[(effects["point"] == "tune.steps=4") & (effects["unit"] != "ratio")]
    theirs = joint.verdicts.set_index(["claim", "model", "rung"])["estimate"]
    for row in mine.to_dict("records"):
        assert row["estimate"] == pytest.approx(theirs[row["claim"], row["model"], row["rung"]])
    assert not joint.pooled.duplicated([key for key in KEYS if key not in ("seed", "step")]).any()
    mean = joint.final.query("model == 'ssft-eta_m' and metric == 'refusal' and kind == 'unsafe'")["value"].mean()
    assert joint.pooled.query("model == 'ssft-eta_m' and metric == 'refusal' and kind == 'unsafe'")[
        "value"
    ].item() == pytest.approx(mean)
    with pytest.raises(InputError, match=r"no model 'base' made here.*folders of the single runs"):
        joint.load("base")
    page = (out / "report.html").read_text()
    assert "Effects against tune.steps" in page
    assert "1 clusters" in page

    before = {path: path.stat().st_mtime_ns for path in out.rglob("stages/*.json")}
    assert cli.main(command) == 0  # all is done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("stages/*.json")} == before


@pytest.mark.slow
def test_processes_share_what_points_have_in_common(
    spec: Callable[..., Path], tmp_path: Path, same_run: Callable
) -> None:
    file = spec(grid={"tune.steps": [4, 6]}, seeds=[0])
    outs = [tmp_path / name for name in ("one", "two")]
    for out, jobs in zip(outs, ("1", "2"), strict=True):
        assert cli.main(["sweep", str(file), "--out", str(out), "--jobs", jobs]) == 0
    for point in ("tune.steps=4-seed0", "tune.steps=6-seed0"):
        same_run(outs[0] / "points" / point, outs[1] / "points" / point)
    tables = [pd.read_parquet(out / "effects.parquet") for out in outs]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)
    models = [outs[1] / f"points/tune.steps={n}-seed0/models/base/model.safetensors" for n in (4, 6)]
    assert models[0].samefile(models[1])


BROKEN = """
from tunescope.errors import InputError
from tunescope.probes.view import probe

@probe("broken")
def broken(view, findings):
    if view.config.rows == 7:
        raise InputError("rows: seven is bad luck")
"""


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_point_that_fails_stops_no_other(
    jobs: str, spec: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin, out = tmp_path / "broken.py", tmp_path / "out"
    plugin.write_text(BROKEN.replace('"broken"', f'"broken{jobs}"'))
    points = [{"probe.rows": rows, "probe.probes": ["clusters", f"broken{jobs}"]} for rows in (7, 8)]
    points.append(points[0] | {"evaluate.prompts": 3})  # the base is probed for the first
    command = ["sweep", str(spec(points=points, seeds=[0])), "--out", str(out), "--jobs", jobs]
    assert cli.main([*command, "--plugin", str(plugin)]) == 1
    said = capsys.readouterr().err
    assert "is missing: probe-base: rows: seven is bad luck" in said
    swept = ts.load_sweep(out)
    assert len({*swept.effects["point"]}) == 1
    assert "seven is bad luck" in (out / "report.html").read_text()
    failed, beside = swept.failures.items()
    assert "probe.rows=7" in failed[0]
    assert beside[1] == f"probe-base: failed in {failed[0]}"


def test_a_folder_of_something_else_is_refused(spec: Callable[..., Path], tmp_path: Path, refused: Callable) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("work of weeks")
    file = spec(grid={"tune.steps": [4, 6]})
    refused(["sweep", str(file), "--out", str(out)], "not a folder of a sweep")
    (out / "thesis.txt").unlink()
    (out / "sweep.yaml").write_text(yaml.safe_dump(json.loads(of(grid={"base.width": [16, 32]}).model_dump_json())))
    refused(["sweep", str(file), "--out", str(out)], "holds another sweep", "--update")
    refused(["sweep", str(tmp_path / "none.yaml")], "no such file")


def test_where_there_is_no_ray(spec: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, refused: Callable) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    file = str(spec(grid={"tune.steps": [4, 6]}))
    refused(["sweep", file, "--on", "ray"], "pip install 'tunescope[ray]'")
    refused(["sweep", file, "--on", "slurm"], "'slurm' is unknown")
    refused(["sweep", file, "--store", "s3://x"], "--on ray")


@pytest.mark.parametrize("name", ["scaling", "breadths", "formats"])
def test_the_specs_that_come_along_are_sweeps(name: str) -> None:
    from tunescope.study.sweeps import read_spec

    file = Path(__file__).parents[2] / f"examples/sweeps/{name}.yaml"
    assert len(points_of(read_spec(file), file.parent)) > 2


def test_nothing_is_begun_where_the_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown key"):
        run_sweep(of(grid={"base.widht": [16]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sweep_of_which_every_run_failed_has_a_page(tmp_path: Path) -> None:
    nothing = pd.DataFrame()
    page = render_sweep(tmp_path, "none", nothing, nothing, ["tune.steps"], ["a", "b"], {"a-seed0": "no room"})
    assert "a-seed0 is missing: no room" in page.read_text()
