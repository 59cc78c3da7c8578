"use strict";
const parts = document.querySelectorAll("details");
// A link to what is in a folded part opens it.
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();
document.addEventListener("click", (event) => {
  if (event.target.closest('a[href^="#"]')) setTimeout(openTarget);
});
// What is printed is not folded.
let folded = [];
addEventListener("beforeprint", () => { folded = [...parts].filter((part) => !part.open); folded.forEach((part) => { part.open = true; }); });
addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
// The numbers behind a mark, for touch and for the keyboard, too, and the prompts of the kind that they are of.
const told = document.getElementById("told"), kinds = [...document.querySelectorAll("[data-kind]")];
kinds.sort((a, b) => b.dataset.kind.length - a.dataset.kind.length);
function say(mark) {
  document.querySelectorAll(".at").forEach((each) => each.classList.remove("at"));
  told.hidden = !mark;
  if (!mark) return;
  mark.classList.add("at");
  told.textContent = mark.getAttribute("aria-label") || mark.getAttribute("title") || mark.textContent;
  const kind = mark.closest("svg") && kinds.find((each) => ` ${told.textContent.replace(/[,:·]/g, " ")} `.includes(` ${each.dataset.kind.replace(/:/g, " ")} `));
  if (kind) told.append(" ", Object.assign(document.createElement("a"), { href: `#${kind.id}`, textContent: `Examples: ${kind.dataset.kind}` }));
}
const marks = "[data-series] :is(use, path):has(> title)";
function tell(event) {
  if (!event.target.closest("#told")) say(event.target.closest(`.step[aria-label], td[title], ${marks}`));
}
document.addEventListener("click", tell);
document.addEventListener("focusin", tell);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") say(null); });
// Curves and bars can be hidden, and a layer chosen, in all figures at once; the address says which, so that a link shows the same.
function address(name, values) {
  const here = new URL(location.href);
  here.searchParams.delete(name);
  values.forEach((value) => here.searchParams.append(name, value));
  if (here.href !== location.href) history.replaceState(null, "", here);
}
const wanted = document.querySelectorAll(".series input");
function choose() {
  const unwanted = new Set([...wanted].filter((box) => !box.checked).map((box) => box.value));
  document.querySelectorAll("[data-series]").forEach((curve) => { curve.style.display = unwanted.has(curve.dataset.series) ? "none" : ""; });
  address("hidden", unwanted);
}
const hidden = new URLSearchParams(location.search).getAll("hidden");
wanted.forEach((box) => { box.checked = !hidden.includes(box.value); box.addEventListener("change", choose); });
choose();
const layer = document.getElementById("layer"), layered = [];
document.querySelectorAll(marks).forEach((mark) => {
  const at = / layer (\d+):/.exec(mark.textContent);
  if (at) layered.push([mark, at[1]]);
});
function pick() {
  layered.forEach(([mark, at]) => {
    mark.classList.toggle("aside", layer.value !== "" && at !== layer.value);
    mark.classList.toggle("picked", at === layer.value);
  });
  document.querySelectorAll(".strip").forEach((strip) => [...strip.children].forEach((at, n) => at.classList.toggle("picked", `${n}` === layer.value)));
  address("layer", layer.value === "" ? [] : [layer.value]);
}
const layers = [...new Set(layered.map(([, at]) => at))].sort((a, b) => a - b);
if (layer && layers.length > 1) {
  layers.forEach((at) => layer.add(new Option(at)));
  layer.closest("fieldset").hidden = false;
  layer.value = new URLSearchParams(location.search).get("layer") || "";
  layer.addEventListener("change", pick);
  pick();
}
// Within a figure, arrows go from mark to mark, and Enter to the examples that a mark links to.
document.querySelectorAll("figure svg").forEach((svg) => {
  if (!svg.querySelector(marks)) return;
  svg.tabIndex = 0;
  svg.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter") told.querySelector("a")?.click();
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const shown = [...svg.querySelectorAll(marks)].filter((mark) => mark.getClientRects().length);
    const at = shown.findIndex((mark) => mark.classList.contains("at"));
    say(shown[(at < 0 && step < 0 ? 0 : at) + step] || shown[step > 0 ? 0 : shown.length - 1]);
  });
});
