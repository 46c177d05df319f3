"""How the page looks, and its keys."""

from gradio.themes import Base, Default

from maskimg_apps.demo import answers

PAINT = "#e6007a"  # of the brush: seldom in pictures, and seen on light and dark


def theme() -> Base:
    """Gradio's, with hints that can be read: its own stand at 2.6:1 on white, these above 4.5:1 everywhere."""
    return Default(primary_hue="indigo", radius_size="lg").set(
        body_text_color_subdued="*neutral_600", input_placeholder_color="*neutral_500"
    )


# Purple to yellow, brighter at each step: the same order without colour.
_RAMP = "\n".join(
    f".mk-r{level} {{ fill: {colour}; background: {colour}; }}"
    for level, colour in enumerate(("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"))
)

CSS = """
.gradio-container { max-width: 1240px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0; }
.mk-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .2rem .9rem; padding: .2rem 0 .1rem; }
.mk-head h1 { font-size: 1.35rem; font-weight: 650; letter-spacing: -.02em; margin: 0; }
.mk-head h1 b { color: var(--color-accent); font-weight: 650; }
.mk-head span { color: var(--body-text-color-subdued); font-size: .9rem; font-variant-numeric: tabular-nums; }
.mk-banner { border: 1px solid var(--border-color-accent); border-radius: 10px; padding: .9rem 1.1rem;
  background: var(--color-accent-soft); line-height: 1.6; }
.mk-banner code { display: inline-block; background: var(--background-fill-primary); padding: .1rem .5rem;
  border-radius: 6px; margin: .15rem 0; }
.mk-hint { color: var(--body-text-color-subdued); font-size: .86rem; margin: 0; }
.mk-hint kbd { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 0 .3rem; font-size: .8em; }

/* Gradio's track is its neutral 200 in the light, where it is pale, and in the dark, where its knob is lost on it. */
input[type=range] { --neutral-200: var(--neutral-400); }
.dark input[type=range] { --neutral-200: var(--neutral-500); }
input[type=range]:not(.mk-replay *)::-webkit-slider-thumb { box-shadow: 0 0 0 1px var(--neutral-500) !important; }
input[type=range]:not(.mk-replay *)::-moz-range-thumb { box-shadow: 0 0 0 1px var(--neutral-500) !important; }

.mk-status { position: relative; padding: .1rem 0 .45rem; min-height: 1.9rem; font-size: .95rem;
  font-variant-numeric: tabular-nums; color: var(--body-text-color); }
.mk-status::after, .mk-status i { content: ""; position: absolute; left: 0; bottom: 0; height: 3px;
  border-radius: 2px; }
.mk-status::after { right: 0; background: var(--border-color-primary); opacity: .6; }
.mk-status i { z-index: 1; background: var(--color-accent); transition: width .15s linear; }

.mk-panel { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: .6rem; }
.mk-panel[style*="--columns:1"] { max-width: 480px; margin: 0 auto; }
.mk-panel figure, .mk-replay figure { margin: 0; min-width: 0; }
.mk-panel figcaption { text-align: center; font-size: .8rem; padding-top: .2rem;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.mk-tile { position: relative; width: 100%; overflow: hidden; border-radius: 8px;
  background: var(--background-fill-secondary); box-shadow: 0 0 0 1px var(--border-color-primary); }
.mk-tile img, .mk-tile svg { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; border-radius: 0; }
.mk-pixels img, img.mk-pixels { image-rendering: pixelated; }
.mk-defs { position: absolute; }
.mk-ground { fill: var(--neutral-200); } .mk-line { fill: var(--neutral-400); opacity: .55; }
.dark .mk-ground { fill: var(--neutral-700); } .dark .mk-line { fill: var(--neutral-500); }
.dark .mk-fresh { stroke: #fff; }
.mk-veil { opacity: .93; }
.mk-fresh { fill: #fff; fill-opacity: .08; stroke: var(--color-accent); stroke-width: 2px;
  vector-effect: non-scaling-stroke; animation: mk-settle 1.1s ease-out both; }
.mk-lines { fill: none; stroke: #fff; stroke-opacity: .5; stroke-width: 1px; vector-effect: non-scaling-stroke; }
.mk-tint { fill: PAINT; fill-opacity: .42; }
.mk-edge { fill: none; stroke: PAINT; stroke-width: 2.5px; vector-effect: non-scaling-stroke; stroke-linecap: square; }
@keyframes mk-settle { from { opacity: 1; } to { opacity: .45; } }
@media (prefers-reduced-motion: reduce) {
  .mk-fresh { animation: none; opacity: .7; }  .mk-status i { transition: none; }
}

.mk-replay { margin-top: .6rem; padding: .9rem 1rem; border: 1px solid var(--border-color-primary);
  border-radius: 12px; background: var(--background-fill-secondary); }
.mk-replay p, .mk-count { font-size: .9rem; color: var(--body-text-color-subdued); margin: 0 0 .5rem; }
.mk-count { color: var(--body-text-color); font-variant-numeric: tabular-nums; min-height: 1.4rem; }
.mk-frames { max-width: 320px; margin: 0 auto; }
.mk-frame { display: none; } .mk-frame.mk-now { display: block; }
.mk-replay .mk-fresh { animation: none; opacity: .8; }
.mk-scrub { display: flex; flex-direction: column; gap: .2rem; max-width: 420px; margin: .6rem auto 0; }
.mk-scrub input { width: 100%; accent-color: var(--color-accent); cursor: pointer; height: 1.6rem; }
.mk-scrub output { text-align: center; font-size: .86rem; color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums; }

/* What is seen in the grid: tokens, or one of the two scores. */
.mk-viewing { align-items: center; justify-content: space-between; gap: .4rem 1rem; flex-wrap: wrap; }
.mk-viewing > * { flex: 0 0 auto !important; min-width: 0 !important; width: auto !important; }
.mk-view .wrap { gap: .35rem !important; }
.mk-view label { padding: .22rem .8rem !important; border-radius: 999px !important; font-size: .86rem; }
.mk-view label { gap: 0 !important; }
.mk-view label span { margin: 0 !important; }
.mk-view label.selected { background: var(--color-accent) !important; border-color: var(--color-accent) !important; }
.mk-view label.selected span { color: #fff; }
.mk-view label:focus-within { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.mk-view input { position: absolute; opacity: 0; width: 1px !important; height: 1px !important; }
.mk-heat { display: none; opacity: .82; }
[data-view=confidence] .mk-confidence, [data-view=critic] .mk-critic { display: block; }
[data-view=confidence] .mk-fresh, [data-view=critic] .mk-fresh { stroke: #fff; }
.mk-legend { display: none; align-items: center; gap: .4rem; font-size: .8rem; margin: 0;
  color: var(--body-text-color-subdued); }
[data-view=confidence] .mk-legend, [data-view=critic] .mk-legend { display: flex; }
.mk-legend b { display: flex; border-radius: 4px; overflow: hidden; } .mk-legend i { width: 14px; height: 10px; }
RAMP

/* One place for the drawing and for what was drawn: while a panel is live the finished pictures step aside. */
.mk-result:has(.mk-live) .mk-gallery { display: none !important; }
.mk-result .mk-slot:has(.mk-replay):not(:has(.mk-count)) { order: 1; }
.mk-fill img { width: 100% !important; height: 100% !important; object-fit: contain; }
.mk-sends { gap: .5rem !important; }
.mk-gallery { gap: .5rem !important; }
.mk-check { display: flex; flex-direction: column; justify-content: center; }
.mk-gallery .grid-wrap { height: auto !important; max-height: none !important; }
.mk-run:not(:has(.mk-running)) .mk-stop { opacity: .45; }
.mk-note { border-left: 3px solid var(--color-accent); padding: .35rem .8rem; margin: 0 0 .6rem; font-size: .92rem;
  background: var(--color-accent-soft); border-radius: 0 8px 8px 0; }
.mk-table { width: 100%; border: 0 !important; border-collapse: collapse; font-size: .9rem; }
.mk-table tr, .mk-table th, .mk-table td { border: 0 !important; }
.mk-table tr + tr { border-top: 1px solid var(--border-color-primary) !important; }
.mk-table th { text-align: left; font-weight: 400; padding: .3rem 1.2rem .3rem .1rem !important; white-space: nowrap;
  color: var(--body-text-color-subdued); vertical-align: top; }
.mk-table td { padding: .3rem 0 !important; overflow-wrap: anywhere; }
.mk-figures { width: 100%; border: 0 !important; border-collapse: collapse; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
.mk-figures th, .mk-figures td { border: 0 !important; padding: .26rem .1rem !important; }
.mk-figures tr + tr { border: 0 !important; border-top: 1px solid var(--border-color-primary) !important; }
.mk-figures tr { border: 0 !important; }
.mk-figures th { text-align: left; font-weight: 400; white-space: nowrap; color: var(--body-text-color-subdued); }
.mk-figures td { text-align: right; }
.mk-figures tr:first-child td { color: var(--color-accent); }
/* The list of models at the end of the header, and the tab Train. */
.mk-top { align-items: center; justify-content: space-between; flex-wrap: wrap; gap: .3rem 1rem !important; }
.mk-top > * { flex: 1 1 auto; width: auto !important; }
.mk-top > #model { flex: 0 0 auto !important; width: 220px !important; }
.mk-where code { overflow-wrap: anywhere; }
.mk-phases { display: flex; flex-wrap: wrap; gap: .35rem; list-style: none !important; padding: 0 !important;
  margin: .35rem 0 .8rem !important; font-size: .84rem; }
.mk-phases li { padding: .16rem .75rem; margin: 0 !important; border-radius: 999px;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color-subdued); }
.mk-phases .mk-done { color: var(--body-text-color); background: var(--color-accent-soft);
  border-color: var(--border-color-accent); }
.mk-phases .mk-done::before { content: "✓ "; color: var(--color-accent); }
.mk-phases .mk-now { color: #fff; background: var(--color-accent); border-color: var(--color-accent); }
.mk-curve { margin: 0 0 .8rem; padding: .6rem .8rem; border: 1px solid var(--border-color-primary);
  border-radius: 12px; background: var(--background-fill-secondary); }
.mk-curve figcaption { display: flex; justify-content: space-between; font-size: .84rem;
  color: var(--body-text-color-subdued); }
.mk-curve b { color: var(--body-text-color); font-variant-numeric: tabular-nums; font-weight: 600; }
.mk-curve svg { display: block; width: 100%; height: 84px; }
.mk-curve polyline { fill: none; stroke: var(--color-accent); stroke-width: 1.8px; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
.mk-curve polygon { fill: var(--color-accent); opacity: .12; }
.mk-training[data-state=failed] .mk-status { color: var(--error-text-color, #b91c1c); }
.mk-open { display: inline-block; margin: .2rem 0 .8rem !important; padding: .45rem 1.1rem !important;
  border-radius: 8px; background: var(--color-accent); color: #fff !important; font-weight: 600;
  text-decoration: none !important; }
.mk-open:hover { filter: brightness(1.1); }
.mk-sheet .image-frame, .mk-sheet button { width: 100%; }
.mk-sheet img { width: 100% !important; height: auto !important; max-height: 380px; object-fit: contain;
  padding: 30px 2px 2px; box-sizing: border-box; }

/* Below its label and its buttons, not under them. */
.mk-shown img { padding: 30px 2px 2px; box-sizing: border-box; }
#outpaint-upload img { padding: 30px 2px 48px; box-sizing: border-box; }
@media (max-width: 640px) {
  .gradio-container { padding-left: 10px !important; padding-right: 10px !important; }
  .mk-panel { gap: .4rem; }
  /* The editor leaves a wide picture a margin of a twelfth: its tools fit into that. */
  .mk-editor .toolbar-wrap { left: 1px !important; width: 26px !important; }
  .mk-hint:has(kbd) { display: none; }
}
""".replace("PAINT", PAINT).replace("RAMP", _RAMP)

# Ctrl+Enter runs and Esc stops whatever the open tab shows. A stroke, or a press on an editor's tools, that has ended,
# wherever it ended, asks for a new preview. The slider of a replay shows one of its frames.
HEAD = (
    answers.SCRIPT
    + """<script>
document.addEventListener("keydown", (event) => {
  const press = (name) => {
    for (const button of document.querySelectorAll(name))
      if (button.offsetParent !== null && !button.disabled) { button.click(); return true; }
  };
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (document.activeElement instanceof HTMLInputElement) document.activeElement.blur();
    press("button.mk-go");
  } else if (event.key === "Escape") press("button.mk-stop");
}, true);

let painting = null;
document.addEventListener("pointerdown", (event) => { painting = event.target.closest?.(".mk-editor"); }, true);
document.addEventListener("pointerup", () => {
  const name = painting?.id;
  if (name) maskimg.stroke(name);
  if (name) setTimeout(() => document.getElementById(name + "-painted")?.click(), 150);
  painting = null;
}, true);

// A file is of the moment when it was chosen or dropped, though its upload and its preview take longer.
for (const given of ["change", "drop", "paste"])
  document.addEventListener(given, (event) => {
    if (given === "change" && event.target.type !== "file") return;
    const box = event.target.closest?.(".mk-editor, [id$=-mask-file], [id$=-upload]");
    if (box) maskimg.stroke(box.id.replace(/-mask-file$/, ""));
  }, true);

// The frames of a replay are made when somebody comes near it.
for (const near of ["pointerover", "focusin"])
  document.addEventListener(near, (event) => {
    const replay = event.target.closest?.(".mk-replay:not([data-asked])");
    if (!replay) return;
    replay.dataset.asked = "yes";
    document.getElementById(replay.closest(".mk-result").id.replace("-result", "-frames")).click();
  }, true);

document.addEventListener("input", (event) => {
  const replay = event.target.closest?.(".mk-replay"), frames = replay?.querySelectorAll(".mk-frame");
  const now = frames?.[event.target.value];
  if (!now) return;
  frames.forEach((frame) => frame.classList.toggle("mk-now", frame === now));
  replay.querySelector("output").textContent = now.dataset.words;
}, true);
</script>"""
)

SET_VIEW = """(view) => { document.getElementById("NAME-result").dataset.view = view.toLowerCase(); }"""

# Of which run the replay is; and a number, so that no two answers are the same.
SHOWN = """(_, reels) => [{number: maskimg.place("NAME").result?.answers ?? 0, asked: ++maskimg.now}, reels]"""

SHOW_FRAMES = """(letter) => {
  const replay = document.querySelector("#NAME-panel .mk-replay");
  if (!replay || !letter?.frames || letter.number !== maskimg.place("NAME").result?.answers) return;
  replay.querySelector(".mk-frames").innerHTML = letter.frames;
  replay.querySelector("input").dispatchEvent(new Event("input", {bubbles: true}));
}"""

# The file is there, and its button knows of it a moment later.
DOWNLOAD = """() => { setTimeout(() => document.getElementById("NAME-animation-file")?.click(), 300); }"""

# A picture that was sent to an editor: its preview is asked for once it is there, as of the press that sent it.
PREVIEW = """() => {
  const number = maskimg.strokes["NAME"];
  if (number) setTimeout(() => document.getElementById("NAME-painted")?.click(), 1000);
}"""

# The recipe of a finished run joins those that the browser keeps, the newest first.
REMEMBER = """(letter, kept) => {
  if (!letter?.recipe) return [];
  const made = JSON.stringify(letter.recipe), others = Array.isArray(kept) ? kept : [];
  return [[letter.recipe, ...others.filter((each) => JSON.stringify(each) !== made)].slice(0, MOST)];
}"""

KEYS = '<p class="mk-hint"><kbd>Ctrl</kbd> <kbd>Enter</kbd> draws, <kbd>Esc</kbd> stops.</p>'

KEYS_AGAIN = '<p class="mk-hint"><kbd>Ctrl</kbd> <kbd>Enter</kbd> runs the round trip again.</p>'


def set_brush(name: str) -> str:
    """Fits the brush of editor `name` to another picture, and leaves a brush alone that a person has set since.

    From the browser: an update from the server would build the editor anew, without its guard.
    """
    return _SET_BRUSH.replace("NAME", name).replace("PAINT", PAINT)


_SET_BRUSH = """(radius) => {
  const set = window.maskimgRadius ??= {};
  if (!radius || radius === set["NAME"]) return {__type__: "update"};
  set["NAME"] = radius;
  const brush = {default_size: radius, colors: ["PAINT"], default_color: "PAINT", color_mode: "fixed"};
  return {__type__: "update", brush, eraser: {default_size: radius}};
}"""
