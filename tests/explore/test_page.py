"""The page, asked as a program asks it, and driven in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tunescope.explore.live import Seen, live_models
from tunescope.explore.page import build, by_token, launch

gradio_client = pytest.importorskip("gradio_client")
ASKED = {
    "kind": "unsafe",
    "number": 1,
    "strength": 1,
    "text": "",
    "chosen": ["base", "dpo-eta_m"],
    "alpha": 1,
    "without": "nothing",
    "source": "nothing",
    "site": "resid_post",
    "layer": 0,
    "position": "last",
}


@pytest.fixture(scope="module")
def address(small_run: Path) -> Iterator[str]:
    app = build(live_models(small_run), "run")
    try:
        yield launch(app)[1]
    finally:
        app.close(verbose=False)


@pytest.fixture(scope="module")
def client(address: str):
    return gradio_client.Client(address, verbose=False)


def test_it_is_served_to_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")


def test_it_answers_with_a_table_and_three_charts(client):
    told, table, *charts = client.predict(api_name="/read", **ASKED)
    assert "wanted: <null>" in told
    assert "twin (safe): " in told
    table = table.get("value", table)
    assert table["headers"] == ["model", "outcome", "log-odds of refusal", "answer"]
    assert [row[0] for row in table["data"]] == ["base", "dpo-eta_m"]
    assert [chart["type"] for chart in charts] == ["altair"] * 3


def test_a_change_is_set_beside_the_model_as_it_is(client):
    plain, changed = (client.predict(api_name="/read", **ASKED | {"alpha": alpha})[1] for alpha in (1, 0))
    plain, changed = (table.get("value", table) for table in (plain, changed))
    assert changed["headers"][4:] == ["outcome as it is", "log-odds as it is"]
    base, tuned = changed["data"]
    assert base[2] == base[5] == tuned[2]  # alpha 0 is the base
    assert tuned[5] == plain["data"][1][2]


def test_what_cannot_be_asked_is_said(client):
    with pytest.raises(gradio_client.exceptions.AppError, match="'hello' is no operator"):
        client.predict(api_name="/read", **ASKED | {"kind": "typed", "text": "hello"})
    with pytest.raises(gradio_client.exceptions.AppError, match="Choose a model"):
        client.predict(api_name="/read", **ASKED | {"chosen": []})


def test_the_chart_of_tokens_has_room_for_a_large_model():
    gain = torch.rand(32, 200, generator=torch.Generator().manual_seed(0))
    seen = Seen("", "other", 0.0, ["\n", "<b>", *map(str, range(198))], torch.zeros(32), gain)
    chart = by_token({"one": seen, "two": seen}).to_dict()
    assert [len(values) for values in chart["datasets"].values()] == [2 * 32 * 200]
    assert json.dumps(chart)  # nothing in it that a page cannot be told


@pytest.mark.slow
def test_in_a_browser_a_prompt_is_chosen_a_model_changed_and_an_own_prompt_typed(address, browser):
    from playwright.sync_api import expect

    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    expect(page.get_by_role("gridcell", name="dpo-eta_m")).to_be_visible(timeout=60_000)
    page.locator("#change button").first.click()
    page.locator("#alpha input[type=number]").fill("0")
    page.get_by_role("button", name="Read").click()
    expect(page.get_by_role("columnheader", name="outcome as it is")).to_be_visible(timeout=60_000)
    page.get_by_label("Kind of prompt").click()
    page.get_by_role("option", name="typed").click()
    page.get_by_label("Your prompt").fill("op0 op1 op2 op0 s1 s2")
    page.get_by_role("button", name="Read").click()
    expect(page.locator("#told textarea")).to_have_value("op0 op1 op2 op0 s1 s2", timeout=60_000)
    page.get_by_label("Your prompt").fill("hello")
    page.get_by_role("button", name="Read").click()
    expect(page.get_by_text("'hello' is no operator")).to_be_visible(timeout=60_000)
    assert all(url.startswith((address.rstrip("/"), "data:", "blob:")) for url in asked)
