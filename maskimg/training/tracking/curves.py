"""The curves of one or several runs, read from their logs: what `maskimg plot` draws."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from maskimg.evaluation.charts import COLOURS, Curve, Panel, draw_panels
from maskimg.training.tracking.logs import Log, read_log

STAGES = ("tokenizer", "generator", "critic")
BUCKETS = {f"loss_masked_{low}_{low + 25}": f"{low} to {low + 25} %" for low in (0, 25, 50, 75)}
MOST_RUNS = len(COLOURS)


class PlotError(ValueError):
    """Runs that cannot be drawn; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class RunLog:
    """One stage of one run: the run's name, the stage (or "" where the directory is not named after one), its log."""

    name: str
    stage: str
    log: Log


def find_runs(paths: Sequence[str | Path]) -> list[RunLog]:
    """The logs in run directories, in those of models (MODEL or MODEL.training with its stages), or log files.

    Raises:
        PlotError: there is no such run, or it has not logged anything yet.
    """
    found = []
    for path in map(Path, paths):
        logs = _logs(path)
        if not logs:
            raise PlotError(f"`{path}` holds no run: give a directory with a log.jsonl, or one of a trained model")
        for file in logs:
            log = read_log(file)
            if log.lines:
                stage = file.parent.name if file.parent.name in STAGES else ""
                name = file.parent.parent.name if stage else file.parent.name
                found.append(RunLog(name.removesuffix(".training") or str(path), stage, log))
            elif len(logs) == 1:
                damaged = f"; {log.damaged} damaged lines" if log.damaged else ""
                raise PlotError(f"`{file}` holds no figures yet{damaged}: wait for the first fifty steps")
    if not found:
        raise PlotError("none of the runs has logged anything yet: wait for the first fifty steps")
    names = {run.name for run in found}
    if len(names) > MOST_RUNS:
        raise PlotError(f"{len(names)} runs cannot be told apart in one chart: give at most {MOST_RUNS}")
    return found


def draw_runs(runs: Sequence[RunLog]) -> Image.Image:
    """Loss, held-out loss, use of codes, losses by mask ratio, accuracy and gradients, stage by stage.

    Raises:
        PlotError: the logs hold none of these figures.
    """
    names = list(dict.fromkeys(run.name for run in runs))
    colours = dict(zip(names, COLOURS, strict=False))
    panels = []
    for stage in (*STAGES, ""):
        of_stage = [run for run in runs if run.stage == stage]
        if of_stage:
            panels += _stage_panels(of_stage, colours)
    if not panels:
        raise PlotError("the logs hold no loss: are they of `maskimg train`?")
    several = len(names) > 1
    legend = [(colours[name], name) for name in names] if several else []
    return draw_panels(panels, title=f"{len(names)} runs" if several else names[0], legend=legend)


def _logs(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for directory in (path, path.with_name(path.name + ".training")):
        if (directory / "log.jsonl").is_file():
            return [directory / "log.jsonl"]
        stages = [directory / stage / "log.jsonl" for stage in STAGES]
        if any(file.is_file() for file in stages):
            return [file for file in stages if file.is_file()]
    return []


def _stage_panels(runs: Sequence[RunLog], colours: dict[str, str]) -> list[Panel]:
    prefix = f"{runs[0].stage}: " if runs[0].stage else ""
    panels = [_loss_panel(runs, colours, prefix)]
    buckets = [name for name in BUCKETS if _logged(runs, name)]
    if len(runs) == 1:
        if buckets:
            curves = [
                _curve(runs[0], name, COLOURS[i], BUCKETS[name], last=False) for i, name in enumerate(BUCKETS)
                if name in buckets
            ]  # fmt: skip
            panels.append(Panel(prefix + "loss by mask ratio", curves))
        if _logged(runs, "accuracy"):
            panels.append(Panel(prefix + "token accuracy", _accuracy_curves(runs[0]), percent=True))
    else:
        panels += [_plain(runs, colours, name, f"{prefix}loss, {BUCKETS[name]} masked") for name in buckets]
        if _logged(runs, "accuracy"):
            panels.append(_plain(runs, colours, "accuracy", prefix + "token accuracy", percent=True))
    others: list[tuple[str, str, dict[str, Any]]] = [
        ("codes_used", "codes used", {"percent": True}),
        ("codes_entropy", "entropy of the codes' use, in bits", {}),
        ("gradient_norm", "gradient norm", {"log": True, "note": "before clipping"}),
    ]
    panels += [
        _plain(runs, colours, name, prefix + title, **options) for name, title, options in others if _logged(runs, name)
    ]
    return [panel for panel in panels if any(len(curve.steps) for curve in panel.curves)]


def _loss_panel(runs: Sequence[RunLog], colours: dict[str, str], prefix: str) -> Panel:
    """A tokenizer's total loss changes its meaning when a discriminator joins, so its pixel loss is shown."""
    loss = "pixel_loss" if _logged(runs, "pixel_loss") else "loss"
    title = prefix + loss.replace("_", " ")
    if len(runs) == 1:
        curves = [
            _curve(runs[0], loss, COLOURS[0], "training"),
            _curve(runs[0], "held_out_loss", COLOURS[1], "held out", dots=True),
        ]
        return Panel(title, [curve for curve in curves if len(curve.steps)])
    curves = [_curve(run, loss, colours[run.name]) for run in runs]
    dots = [_curve(run, "held_out_loss", colours[run.name], dots=True) for run in runs]
    return Panel(title, [*curves, *dots], note="dots: held out" if _logged(runs, "held_out_loss") else "")


def _accuracy_curves(run: RunLog) -> list[Curve]:
    steps, expected = run.log.series("accuracy_expected")
    curves = [_curve(run, "accuracy", COLOURS[0], "measured", percent=True)]
    bands = [run.log.series(name) for name in ("accuracy_low", "accuracy_high")]
    if steps and all(each == steps for each, _ in bands):
        label = "expected of a calibrated model, 95 %"
        curves.insert(0, Curve(steps, expected, COLOURS[1], label, band=(bands[0][1], bands[1][1])))
    return curves


def _plain(
    runs: Sequence[RunLog], colours: dict[str, str], name: str, title: str, *, percent=False, log=False, note=""
) -> Panel:
    several = len(runs) > 1
    curves = [_curve(run, name, colours[run.name] if several else COLOURS[0], positive=log) for run in runs]
    return Panel(title, curves, note=note, percent=percent, log=log)


def _curve(
    run: RunLog, name: str, colour: str, label: str = "", *, dots=False, percent=False, last=True, positive=False
) -> Curve:
    """A figure of a run; the legend tells its last value, too."""
    steps, values = run.log.series(name)
    if positive:
        kept = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0]
        steps, values = [step for step, _ in kept], [value for _, value in kept]
    if label and values and last:
        label += f" {100 * values[-1]:.1f} %" if percent else f" {values[-1]:.3f}"
    return Curve(steps, values, colour, label, dots=dots)


def _logged(runs: Sequence[RunLog], name: str) -> bool:
    return any(run.log.series(name)[0] for run in runs)
