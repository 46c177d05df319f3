"""Which answer of the server the page takes: nothing late replaces a finished run, nor one that was stopped.

Answers arrive in any order. So everything that is asked for has a number, counted in the browser; each answer comes as
a letter with the number that it answers, in a box that nobody sees; and the page's script alone takes letters out and
shows them. A letter is refused where something newer stands. The rules:

- A run's letters are refused once a newer run was pressed, or Stop. Its end has a number too, counted when it arrives.
- A preview waits while a run is under way, and is refused if it was asked for before that run's end, or if a newer
  one is shown.
- Of all else only the answer to the newest question is taken, and in Train each that is newer than what is shown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from maskimg_apps.demo import tokens
from maskimg_apps.demo.serving.errors import kindly

# For the page only: not listed as a call, and no veil over what it changes.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STOPPED = tokens.status("WORDS")

SCRIPT = """<script>
const maskimg = window.maskimg = {
  now: 0,
  places: {},

  // A place is a tab, or what is asked for by itself. `running` to `typed` are numbers: of the run that is under way,
  // and of what was sent, shown, ended, stopped, previewed, asked for last, and typed as a seed. `part` counts the
  // letters of a run; `panel` is what the panel shows, `before` what it showed before the run, and `result` the last
  // finished run.
  place(name) {
    return this.places[name] ??= {running: 0, sent: 0, shown: 0, ended: 0, stopped: 0, previewed: 0, asked: 0,
      typed: 0, part: 0, before: null, panel: null, result: null};
  },

  ask(name) { return this.place(name).asked = ++this.now; },

  // All but runs and previews. `letter.place` is a tab that the answer changes: not if it has been used since. `press`
  // is a tab whose button is pressed next, and `go` the page that is opened, once Gradio is through with this event.
  receive(name, newest, letter) {
    const place = this.place(name);
    if (!letter || letter.answers < (newest ? place.asked : place.shown)) return [];
    place.shown = letter.answers;
    if (letter.place && this.place(letter.place).asked > letter.answers) return [];
    if (letter.press) setTimeout(() => document.getElementById(letter.press + "-go")?.click(), 300);
    if (letter.go) setTimeout(() => window.location.assign(letter.go + window.location.search), 100);
    return letter.values;
  },

  // A run: pressed, sent once its inputs are gathered, then shown step by step until it ends, fails or is stopped.
  press(name, panel) {
    const place = this.place(name);
    if (!place.running) { place.running = this.ask(name); place.before = place.panel = panel; }
    return {number: place.running, kept: place.result?.answers ?? 0};
  },

  send(name, ticket) {
    const place = this.place(name);
    if (ticket.number !== place.running || ticket.number === place.sent) return {number: 0, kept: 0};
    place.sent = ticket.number;
    return ticket;
  },

  take(name, letter) {
    const place = this.place(name);
    if (!letter || letter.answers < Math.max(place.running, place.stopped, place.shown)) return [];
    const first = letter.answers !== place.shown;
    if (letter.answers === place.result?.answers || (!first && letter.part < place.part)) return [];
    if (letter.failed) return this.fail(name);
    const seed = first && letter.answers > place.typed ? letter.seed : undefined;
    place.running = place.shown = letter.answers;
    place.part = letter.part;
    place.panel = letter.panel ?? place.panel;
    if (!letter.pictures) return [letter.status, letter.panel ?? undefined, undefined, seed, undefined];
    place.running = 0;
    place.ended = ++this.now;
    place.result = {answers: letter.answers, panel: letter.panel};
    return [letter.status, letter.panel, letter.pictures, seed, {__type__: "update", interactive: true}];
  },

  fail(name) {
    const place = this.place(name);
    if (!place.running) return [];
    place.running = 0;
    return [STOPPED.replace("WORDS", "stopped"), place.panel = place.before];
  },

  stop(name, status) {
    const place = this.place(name), number = place.running;
    if (!number) return [0];
    place.running = 0;
    place.stopped = this.ask(name);
    const begun = place.shown === number, step = begun && status.match(/step (\\d+)\\/(\\d+)/);
    const words = step ? `stopped at step ${step[1]} of ${step[2]}` : "stopped";
    if (begun) place.ended = place.stopped;
    if (!begun || (place.result && place.before?.endsWith(place.result.panel))) place.panel = place.before;
    return [place.stopped, STOPPED.replace("WORDS", words), place.panel];
  },

  // A picture that another tab sent, unless this one has been used since.
  open(name, editor, letter) {
    if (!letter || letter.answers < this.place(name).asked) return [];
    if (editor) this.strokes[editor] = letter.answers;
    return [...letter.values, {__type__: "update", selected: name}];
  },

  // A stroke is of the moment when it ends, and a file of that when it is given, though the preview is asked for later.
  strokes: {},
  stroke(editor) { return this.strokes[editor] = ++this.now; },
  look(name, editor) {
    const place = this.place(name), number = this.strokes[editor] || ++this.now;
    this.strokes[editor] = 0;
    place.asked = Math.max(place.asked, number);
    return number;
  },

  preview(name, letter) {
    const place = this.place(name);
    if (!letter || letter.answers < place.previewed) return [];
    place.previewed = letter.answers;
    if (letter.answers < place.ended) return [undefined, letter.radius];
    const panel = letter.beside && place.result ? letter.beside + place.result.panel : letter.panel;
    place.before = panel;
    if (place.running) return [undefined, letter.radius];
    return [place.panel = panel, letter.radius];
  },
};
</script>""".replace("STOPPED.", f"{STOPPED!r}.")


def letter_box() -> gr.HTML:
    """Where letters arrive, and where the page keeps what goes with a question.

    It is not drawn, so that Gradio says of each letter that it came, however fast they come. It may hold anything, and
    the addresses of files in it are set, which those in a `gr.JSON` are not.
    """
    return gr.HTML(visible=False)


def asking(name: str) -> str:
    """The script of an event that asks place `name` for something: its number."""
    return f"() => maskimg.ask({name!r})"


def pressing(name: str) -> str:
    return f"(panel) => [maskimg.press({name!r}, panel)]"


def sending(name: str) -> str:
    return f"(ticket, ...values) => [maskimg.send({name!r}, ticket), ...values]"


def taking(name: str) -> str:
    """Of a letter of a run: what status, panel, gallery, seed and the animation's button become."""
    return f"(letter) => maskimg.take({name!r}, letter)"


def failing(name: str) -> str:
    """Of a run that failed without a letter: what status and panel become."""
    return f"() => maskimg.fail({name!r})"


def stopping(name: str) -> str:
    """What the number of the stop, the status and the panel become."""
    return f"(status) => maskimg.stop({name!r}, status)"


def looking(name: str, editor: str = "") -> str:
    """Asks for a preview, of the last stroke on `editor` where there is one."""
    return f"() => maskimg.look({name!r}, {editor!r})"


def previewing(name: str) -> str:
    """Of a letter of a preview: what the panel and the brush's radius become."""
    return f"(letter) => maskimg.preview({name!r}, letter)"


def typing(name: str) -> str:
    """Somebody typed a seed: an older run does not write over it."""
    return f"() => {{ maskimg.place({name!r}).typed = ++maskimg.now; }}"


def opening(name: str, editor: str = "") -> str:
    """Of a letter with a picture for tab `name`: what becomes of the letter's values' components, and the tabs."""
    return f"(letter) => maskimg.open({name!r}, {editor!r}, letter)"


def receiving(name: str, *, newest: bool = True) -> str:
    """Of a letter to place `name`: what its values' components become.

    Args:
        newest: only the answer to the newest question; else each that answers a newer one than what is shown.
    """
    return f"(letter) => maskimg.receive({name!r}, {str(newest).lower()}, letter)"


def update(**properties: Any) -> dict[str, Any]:
    """In a letter: properties of a component other than its value; none leaves it as it is."""
    return {"__type__": "update"} | properties


def as_sent(component: Any, value: Any) -> Any:
    """A value as the page gets it from `component`, for a letter."""
    sent = component.postprocess(value)
    return sent.model_dump() if hasattr(sent, "model_dump") else sent


def reply(number: Any, make: Callable[[], list[Any]], otherwise: list[Any]) -> Iterator[dict[str, Any]]:
    """The letter with the values that `make` returns; where it cannot, one with `otherwise`, and then the error."""
    try:
        with kindly():
            values = make()
    except gr.Error:
        yield {"answers": number, "values": otherwise}
        raise
    yield {"answers": number, "values": values}


def wire(
    events: Sequence[Any],
    run: Callable,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    name: str,
    *,
    newest: bool = True,
    **options: Any,
) -> None:
    """Each of `events` asks place `name`, and only the answer to the newest question reaches `outputs`.

    Args:
        run: the number and the values of `inputs` -> a letter with `values` for the outputs.
        newest: as in `receiving`.
        options: of the event that runs it.
    """
    asked, box = letter_box(), letter_box()
    options = QUIET | {"trigger_mode": "multiple"} | options
    gr.on(list(events), None, None, asked, js=asking(name), **QUIET).then(run, [asked, *inputs], box, **options)
    box.change(None, box, list(outputs), js=receiving(name, newest=newest), **QUIET)


def wire_preview(
    events: Sequence[Any],
    preview: Callable[..., dict[str, Any]],
    inputs: Mapping[str, Any],
    outputs: Sequence[Any],
    name: str,
    editor: str = "",
) -> Any:
    """Each of `events` asks for a preview of tab `name`.

    Args:
        preview: the values of `inputs` -> `panel`, and as needed `radius` of the brush, and `beside`, what stands
            beside a finished run where there is no hole to show.
        outputs: the panel, and the brush's radius.
        editor: where strokes are made, or a file is given.
    """
    asked, box = letter_box(), letter_box()

    def answer(number: Any, *values: Any) -> dict[str, Any]:
        return preview(**dict(zip(inputs, values, strict=True))) | {"answers": number}

    gr.on(list(events), None, None, asked, js=looking(name, editor), **QUIET).then(
        answer, [asked, *inputs.values()], box, trigger_mode="always_last", **QUIET
    )
    return box.change(None, box, list(outputs), js=previewing(name), **QUIET)
