"""The page on live models: a form, and what the models do with what it asks. Served to this machine alone."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.colors import to_hex

from tunescope.errors import InputError
from tunescope.explore.live import RANDOM, Asked, Change, LiveModel, Patch, Seen, live_models
from tunescope.interventions.patched import SITES
from tunescope.models.sites import Site
from tunescope.records.names import BASE, UNSAFE
from tunescope.report.style import models_of, tint
from tunescope.tasks.base import TYPED, Typed

HOST = "127.0.0.1"
NOTHING, CONTROL = "nothing", "a random direction"
SOURCES: dict[str, Literal["twin", "other"]] = {"its twin": "twin", "another unsafe prompt": "other"}
COLUMNS = ["model", "outcome", "log-odds of refusal", "answer"]
TITLES = {"tau": "tau", "gain": "|dW a| / |a|"}
BEFORE = ["outcome as it is", "log-odds as it is"]
WIDTHS = {False: [140, 120, 110, 500], True: [140, 120, 110, 360, 120, 110]}  # of columns, without a change and with
ABOUT = """
**Outcome**: what the greedy answer is. **Log-odds of refusal** (nats): of stock openings, or of the refusal's first
token. **tau**: above 0 a prompt looks safe, below it unsafe, in standard deviations within a class, at its last token
(Jain et al. 2024, eq. 1). **|dW a| / |a|**: how strongly fine-tuning's change of W_in acts on what it reads.
One prompt is an example; the report has intervals and controls.
"""


def serve(folder: Path, *, port: int | None = None, device: str | None = None, browser: bool = True) -> None:
    """Until it is interrupted.

    Raises:
        InputError: the folder holds no run with its models, gradio is not installed, or the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine
    for name in ("no_proxy", "NO_PROXY"):  # gradio looks whether its page is up
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
    try:
        import altair  # noqa: F401
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError("explore: its page needs gradio and altair; pip install 'tunescope[explore]'") from error
    app = build(live_models(folder, device), folder.resolve().name)
    try:
        _, url, _ = launch(app, port, browser)
    except OSError as error:
        raise InputError(f"--port: {port or 'every one from 7860 on'} is taken; name another ({error})") from error
    print(url, flush=True)
    app.block_thread()


@contextmanager
def errors_shown() -> Iterator[None]:
    """What is wrong with what was asked is said on the page."""
    import gradio as gr

    try:
        yield
    except InputError as error:
        raise gr.Error(escape(str(error), quote=False), print_exception=False) from error  # it would be read as HTML


def launch(app: Any, port: int | None = None, browser: bool = False) -> Any:
    import gradio as gr

    plain = ["system-ui", "sans-serif"]  # others are fetched from the network
    # Past the queue several could read at a time.
    return app.queue(api_open=False).launch(
        server_name=HOST,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        ssr_mode=False,
        prevent_thread_lock=True,
        footer_links=[],
        theme=gr.themes.Default(font=plain, font_mono=["ui-monospace", "monospace"]),
    )


def build(models: Mapping[str, LiveModel], title: str) -> Any:
    """The page, as a gradio `Blocks`."""
    import gradio as gr

    base = models[BASE]
    kinds = [UNSAFE, *(name for name in base.task.kinds if name != UNSAFE)]
    typed = [TYPED.name] if isinstance(base.task, Typed) else []
    positions = tuple(base.twins.positions) if base.twins else ()
    layers = list(range(base.layers))
    looks = _colours({label: model.named for label, model in models.items()})

    def shown(kind: str) -> list[Any]:
        """Which inputs a kind of prompts has."""
        of_task = kind != TYPED.name
        with errors_shown():
            most = max(1, len(base.pool(kind)) - 1) if of_task else 1
        return [
            gr.update(visible=of_task, maximum=most, value=0),
            gr.update(visible=of_task and base.task.kinds[kind].dial),
            gr.update(visible=not of_task),
        ]

    def read(
        kind: str,
        number: float | None,
        strength: float | None,
        text: str,
        chosen: list[str],
        alpha: float | None,
        without: str,
        source: str,
        site: str,
        layer: int,
        position: str,
        bar: gr.Progress = gr.Progress(),  # noqa: B008  # how gradio is asked for one
    ) -> tuple[Any, ...]:
        if not chosen:
            raise gr.Error("Choose a model.", print_exception=False)
        if number is None or strength is None or alpha is None:
            raise gr.Error("A number is missing.", print_exception=False)
        wanted = Patch(SOURCES[source], Site(layer, site), position) if source in SOURCES else None
        change = Change(alpha, _layer_of(without), wanted)
        found: dict[str, Seen] = {}
        before: dict[str, Seen] = {}
        with errors_shown():
            for label in bar.tqdm(chosen, desc="models"):
                model = models[label]
                if kind == TYPED.name:
                    asked = model.ask_text(text)
                else:
                    asked = model.ask(kind, int(number), strength if base.task.kinds[kind].dial else 0.0)
                found[label] = model.look(asked, change)
                if change != Change():
                    before[label] = model.look(asked)
        return (
            _described(asked),
            gr.update(value=_table(found, before), column_widths=WIDTHS[bool(before)]),
            by_layer(found, "tau", looks),
            by_layer(found, "gain", looks),
            by_token(found),
        )

    with gr.Blocks(title=f"tunescope explore: {title}", analytics_enabled=False) as app:
        gr.Markdown(f"# {title}\nOne prompt, and what every model of this run does with it.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                kind = gr.Dropdown([*kinds, *typed], value=UNSAFE, label="Kind of prompt", elem_id="kind")
                number = gr.Slider(
                    0, max(1, len(base.pool(UNSAFE)) - 1), value=0, step=1, label="Prompt", elem_id="number"
                )
                strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength", visible=False, elem_id="strength")
                text = gr.Textbox("", label="Your prompt", lines=3, visible=False, elem_id="text")
                which = gr.CheckboxGroup(list(models), value=list(models)[:2], label="Models", elem_id="models")
                with gr.Accordion("Change the models", open=False, elem_id="change"):
                    alpha = gr.Slider(-1, 3, value=1, step=0.05, label="alpha, of W + alpha dW", elem_id="alpha")
                    known = map(str, base.inner_layers)
                    without = gr.Dropdown(
                        [NOTHING, CONTROL, *known],
                        value=NOTHING,
                        label="Without the direction of refusal after layer",
                        elem_id="without",
                    )
                    patched = bool(positions)
                    source = gr.Dropdown(
                        [NOTHING, *SOURCES], value=NOTHING, label="Patch from", visible=patched, elem_id="source"
                    )
                    site = gr.Dropdown(list(SITES), value=SITES[-1], label="at", visible=patched, elem_id="site")
                    layer = gr.Dropdown(layers, value=layers[0], label="of layer", visible=patched, elem_id="layer")
                    position = gr.Dropdown(
                        list(positions),
                        value=positions[-1] if positions else None,
                        label="at tokens",
                        visible=patched,
                        elem_id="position",
                    )
                ask = gr.Button("Read", variant="primary", elem_id="read")
            with gr.Column(scale=3, min_width=320):
                told = gr.Textbox(label="Prompt", lines=2, max_lines=12, interactive=False, elem_id="told")
                answers = gr.Dataframe(
                    headers=COLUMNS, label="Answers", wrap=True, interactive=False, elem_id="answers", max_height=700
                )
                tau = gr.Plot(show_label=False, elem_id="tau")
                gain = gr.Plot(show_label=False, elem_id="gain")
                tokens = gr.Plot(show_label=False, elem_id="tokens")
                gr.Markdown(ABOUT)
        kind.change(shown, kind, [number, strength, text], show_progress="hidden", api_visibility="private")
        inputs = [kind, number, strength, text, which, alpha, without, source, site, layer, position]
        outputs = [told, answers, tau, gain, tokens]
        gr.on([ask.click, text.submit, app.load], read, inputs, outputs, api_name="read", concurrency_limit=1)
    return app


def _layer_of(without: str) -> int | None:
    return None if without == NOTHING else RANDOM if without == CONTROL else int(without)


def _described(asked: Asked) -> str:
    """The prompt, what is wanted, why, and its twin."""
    described = asked.batch.describe(0)
    lines = [str(described["prompt"])]
    if wanted := described.get("wanted"):
        lines.append(f"wanted: {wanted}")
    if why := described.get("why"):
        lines.append(f"why: {why}")
    if asked.twin:
        lines.append(f"twin ({asked.twin.kind.name}): {asked.twin.describe(0)['prompt']}")
    return "\n".join(lines)


def _table(found: Mapping[str, Seen], before: Mapping[str, Seen]) -> pd.DataFrame:
    rows = []
    for label, seen in found.items():
        row = dict(zip(COLUMNS, (label, seen.outcome, f"{seen.odds:.2f}", seen.answer), strict=True))
        if label in before:
            was = before[label]
            row |= dict(zip(BEFORE, (was.outcome, f"{was.odds:.2f}"), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def by_layer(found: Mapping[str, Seen], what: Literal["tau", "gain"], looks: Mapping[str, str]) -> Any:
    """tau, or the action of dW at the last token, of every model: an altair chart.

    Args:
        looks: colours by model.
    """
    import altair as alt

    rows = [
        {"model": label, "layer": layer, what: value}
        for label, seen in found.items()
        if (values := seen.tau if what == "tau" else None if seen.gain is None else seen.gain[:, -1]) is not None
        for layer, value in enumerate(values.tolist())
    ]
    names = list(dict.fromkeys(str(row["model"]) for row in rows))
    colour = alt.Color("model:N", scale=alt.Scale(domain=names, range=[looks[name] for name in names]), title=None)
    return (
        alt.Chart(alt.InlineData(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y(f"{what}:Q", title=TITLES[what]),
            color=colour,
            tooltip=["model:N", "layer:O", alt.Tooltip(f"{what}:Q", format=".3f", title=TITLES[what])],
        )
        .properties(width=560, height=220, title=f"{TITLES[what]} by layer, at the last token")
    )


def by_token(found: Mapping[str, Seen]) -> Any:
    """How strongly dW acts at every layer and token: an altair chart, a row per fine-tune, with one scale."""
    import altair as alt

    rows = [
        {"model": label, "layer": layer, "place": place, "token": seen.tokens[place], "gain": value}
        for label, seen in found.items()
        if seen.gain is not None
        for layer, values in enumerate(seen.gain.tolist())
        for place, value in enumerate(values)
    ]
    names = {str(row["place"]): repr(row["token"]).strip("'") for row in rows}
    heat = (
        alt.Chart(alt.InlineData(rows))  # a table would be refused beyond 5,000 rows
        .mark_rect()
        .encode(
            x=alt.X("place:O", title="token", axis=alt.Axis(labelExpr=f"({json.dumps(names)})[datum.label]")),
            y=alt.Y("layer:O", sort="descending"),
            color=alt.Color("gain:Q", title=TITLES["gain"], scale=alt.Scale(scheme="viridis", domainMin=0)),
            tooltip=["model:N", "token:N", "layer:O", alt.Tooltip("gain:Q", format=".4f", title=TITLES["gain"])],
        )
        .properties(width=max(320, 18 * len(names)), height=120)
    )
    rows_of = heat.facet(
        row=alt.Row("model:N", title=None, sort=list(found), header=alt.Header(labelOrient="top", labelAnchor="start"))
    )
    return rows_of.properties(title=f"{TITLES['gain']} by layer and token")


def _colours(named: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """As in the report; of models that share a colour there, later ones are lighter."""
    table = pd.DataFrame([{"model": label, **of} for label, of in named.items()])
    found: dict[str, str] = {}
    times: Counter[str] = Counter()
    for each in models_of(table):
        times[each.colour] += 1
        found[each.name] = to_hex(tint(each.colour, 1 / times[each.colour]))
    return found
