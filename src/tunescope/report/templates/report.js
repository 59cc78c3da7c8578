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
// The numbers behind a mark, for touch and for the keyboard, too.
const told = document.getElementById("told");
function tell(event) {
  const mark = event.target.closest(".step[aria-label], td[title], [data-series] use:has(title)");
  told.hidden = !mark;
  if (mark) told.textContent = mark.getAttribute("aria-label") || mark.title || mark.textContent;
}
document.addEventListener("click", tell);
document.addEventListener("focusin", tell);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") told.hidden = true; });
// Curves can be hidden, in all figures at once.
const wanted = document.querySelectorAll(".series input");
function choose() {
  const unwanted = new Set([...wanted].filter((box) => !box.checked).map((box) => box.value));
  document.querySelectorAll("[data-series]").forEach((curve) => { curve.style.display = unwanted.has(curve.dataset.series) ? "none" : ""; });
}
wanted.forEach((box) => box.addEventListener("change", choose));
choose();
