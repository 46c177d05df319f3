"""Charts by their pixels: what is drawn stands where its numbers say. And the curves of runs, as a person asks."""

import json

import numpy as np
import pytest
from PIL import Image, ImageColor

from maskimg.cli.main import main
from maskimg.evaluation import charts
from maskimg.evaluation.charts import COLOURS, Curve, Panel, draw_panels, usage_chart
from maskimg.training.tracking.curves import PlotError, draw_runs, find_runs
from vqgan import load_image


def _of_colour(image: Image.Image, colour: str, tolerance: int = 12) -> np.ndarray:
    """(y, x) of the pixels that have a colour."""
    difference = np.abs(np.asarray(image.convert("RGB"), int) - np.array(ImageColor.getrgb(colour)))
    return np.argwhere(difference.max(-1) <= tolerance)


def _run(directory, lines) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (directory / "log.jsonl").write_text(text)


def _lines(count: int = 8, **figures: float) -> list[dict]:
    return [{"step": 50 * i + 49, **{name: value / (i + 1) for name, value in figures.items()}} for i in range(count)]


# ----------------------------------------------------------------------------- panels


def test_a_falling_curve_falls_from_left_to_right():
    page = draw_panels([Panel("loss", [Curve([0, 50, 100], [3.0, 2.0, 1.0], COLOURS[0])])])
    found = _of_colour(page, COLOURS[0])
    slope, start = np.polyfit(found[:, 1], found[:, 0], 1)
    assert slope > 0  # y counts downwards
    assert np.abs(found[:, 0] - slope * found[:, 1] - start).max() < 8  # and is straight
    assert np.ptp(found[:, 1]) > 0.8 * charts.PANEL[0] * charts.DENSITY


def test_on_a_logarithmic_axis_powers_stand_at_even_distances():
    curve = Curve([0, 100, 200], [1e-4, 1e-2, 1.0], COLOURS[0])
    straight = _of_colour(draw_panels([Panel("norm", [curve], log=True)]), COLOURS[0])
    bent = _of_colour(draw_panels([Panel("norm", [curve])]), COLOURS[0])
    fits = [np.abs(y - np.polyval(np.polyfit(x, y, 1), x)).max() for y, x in (straight.T, bent.T)]
    assert fits[0] < 8 < 80 < fits[1]


def test_a_constant_or_single_value_is_drawn():
    for curve in (Curve([0, 9], [2.0, 2.0], COLOURS[0]), Curve([7], [0.0], COLOURS[0])):
        assert len(_of_colour(draw_panels([Panel("loss", [curve])]), COLOURS[0])) > 10


def test_the_first_values_of_a_long_curve_do_not_flatten_the_rest():
    values = [100.0, 50.0, *np.linspace(3, 1, 60)]
    page = draw_panels([Panel("loss", [Curve(range(62), values, COLOURS[0], dots=True)])])
    late = _of_colour(page.crop((page.width // 2, 0, page.width, page.height)), COLOURS[0])
    assert np.ptp(late[:, 0]) > 0.3 * charts.PANEL[1] * charts.DENSITY
    # And what is cut off stays inside its own panel's frame.
    assert _of_colour(page, COLOURS[0])[:, 0].min() > 30 * charts.DENSITY


def test_a_band_surrounds_its_curve():
    curve = Curve([0, 100], [2.0, 2.0], COLOURS[1], band=([1.0, 1.0], [3.0, 3.0]))
    page = draw_panels([Panel("accuracy", [curve])])
    band, line = _of_colour(page, charts._pale(COLOURS[1], 0.78)), _of_colour(page, COLOURS[1])
    assert band[:, 0].min() < line[:, 0].min() - 50 and band[:, 0].max() > line[:, 0].max() + 50


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_a_page_has_room_for_every_panel(count):
    panels = [Panel(f"panel {i}", [Curve([0, 1], [0.0, 1.0], COLOURS[0], "a curve")]) for i in range(count)]
    page = draw_panels(panels, title="runs", legend=[(COLOURS[i], f"run {i}") for i in range(3)])
    columns = min(count, 2 if count <= 6 else 3)
    rows = -(-count // columns)
    assert page.width >= columns * charts.PANEL[0] * charts.DENSITY
    assert page.height >= rows * charts.PANEL[1] * charts.DENSITY
    with pytest.raises(ValueError, match="at least one panel"):
        draw_panels([])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 20000, [0, 5000, 10000, 15000, 20000]), (2.02, 2.31, [2.1, 2.2, 2.3])],
)
def test_ticks_are_round_numbers_inside_the_range(low, high, ticks):
    assert charts._ticks(low, high, 5) == pytest.approx(ticks)


def test_numbers_are_short():
    assert [charts._number(x) for x in (0, 0.25, 3, 950, 5000, 12_500, 2.5e6)] == [
        "0", "0.25", "3", "950", "5k", "12.5k", "2.5M",
    ]  # fmt: skip


# ----------------------------------------------------------------------------- the codebook


def test_the_use_of_a_codebook_is_as_wide_as_the_codes_that_are_used():
    """Of 100 codes 25 were used, all alike: a block of a quarter of the width."""
    found = _of_colour(usage_chart([0] * 75 + [40] * 25), COLOURS[0])
    assert np.ptp(found[:, 1]) == pytest.approx(0.25 * (622 - 58) * charts.DENSITY, abs=4)


def test_a_code_used_ten_times_as_often_stands_one_power_higher():
    """100, 10 and 1 of 111: the steps are of one height."""
    found = _of_colour(usage_chart([1, 100, 10]), COLOURS[0])
    tops = [found[np.abs(found[:, 1] - charts.DENSITY * x) < 4][:, 0].min() for x in (100, 340, 560)]
    assert tops[1] - tops[0] == pytest.approx(tops[2] - tops[1], abs=3)
    assert tops[1] - tops[0] > 50


@pytest.mark.parametrize("counts", [[0, 0, 0], [5], [7] * 16, [0] * 70_000 + [1]])
def test_every_codebook_can_be_drawn(counts):
    assert usage_chart(counts).size == (640 * charts.DENSITY, 328 * charts.DENSITY)


# ----------------------------------------------------------------------------- maskimg plot


def test_the_stages_of_a_model_are_drawn(tmp_path, capsys):
    figures = {"loss": 3.0, "gradient_norm": 1.0}
    _run(tmp_path / "m.training" / "tokenizer", _lines(**figures, pixel_loss=0.3, codes_used=0.9))
    buckets = {f"loss_masked_{low}_{low + 25}": 3.0 for low in (0, 25, 50, 75)}
    _run(tmp_path / "m.training" / "generator", [*_lines(**figures, **buckets), {"step": 400, "held_out_loss": 2.0}])
    titles = [panel.title for panel in _panels(find_runs([tmp_path / "m"]))]
    assert titles == [
        "tokenizer: pixel loss", "tokenizer: codes used", "tokenizer: gradient norm",
        "generator: loss", "generator: loss by mask ratio", "generator: gradient norm",
    ]  # fmt: skip
    main(["plot", str(tmp_path / "m"), "--out", str(tmp_path / "new" / "curves.png")])
    assert load_image(tmp_path / "new" / "curves.png").width > 1000
    assert capsys.readouterr().out == f"done: in {tmp_path / 'new' / 'curves.png'}\n"
    # The directory of the stages and one of them alone do as well.
    assert len(find_runs([tmp_path / "m.training"])) == 2
    assert [run.name for run in find_runs([tmp_path / "m.training" / "generator"])] == ["m"]


def _panels(runs) -> list[Panel]:
    seen: list[Panel] = []

    def note(panels, **_):
        seen.extend(panels)
        return Image.new("RGB", (1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskimg.training.tracking.curves.draw_panels", note)
        draw_runs(runs)
    return seen


def test_several_runs_have_a_colour_each_in_every_panel(tmp_path):
    for name, count in (("one", 4), ("two", 8)):
        _run(tmp_path / name, _lines(count, loss=3.0, loss_masked_50_75=2.0, accuracy=0.5))
    panels = _panels(find_runs([tmp_path / "one", tmp_path / "two"]))
    assert [panel.title for panel in panels] == ["loss", "loss, 50 to 75 % masked", "token accuracy"]
    for panel in panels:
        drawn = [(curve.colour, len(curve.steps)) for curve in panel.curves if len(curve.steps)]
        assert drawn == [(COLOURS[0], 4), (COLOURS[1], 8)]


def test_the_expected_accuracy_is_drawn_with_its_band(tmp_path):
    names = {"accuracy": 0.5, "accuracy_expected": 0.6, "accuracy_low": 0.55, "accuracy_high": 0.65}
    _run(tmp_path / "run", _lines(**names, loss=1.0))
    (accuracy,) = (panel for panel in _panels(find_runs([tmp_path / "run"])) if panel.title == "token accuracy")
    expected, measured = accuracy.curves
    assert expected.band is not None
    assert (expected.band[0][0], expected.values[0], expected.band[1][0]) == (0.55, 0.6, 0.65)
    assert measured.values[0] == 0.5


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (None, "holds no run: give a directory with a log.jsonl, or one of a trained model"),
        ([], "holds no figures yet: wait for the first fifty steps"),
        (["{", "nonsense"], "holds no figures yet; 2 damaged lines: wait"),
        ([{"step": 3, "warning": "oh"}], "the logs hold no loss"),
    ],
)
def test_a_run_that_cannot_be_drawn_is_refused_in_one_line(tmp_path, capsys, lines, sentence):
    if lines is not None:
        _run(tmp_path / "run", lines)
    with pytest.raises(SystemExit) as exit:
        main(["plot", str(tmp_path / "run"), "--out", str(tmp_path / "a.png")])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_damaged_lines_are_left_out_with_a_note(tmp_path, capsys):
    _run(tmp_path / "run", [*_lines(loss=3.0), '{"step": 500, "lo'])
    main(["plot", str(tmp_path / "run"), "--out", str(tmp_path / "a.png")])
    assert "left out: 1 damaged lines in the log of run" in capsys.readouterr().err


def test_too_many_runs_and_other_endings_are_refused(tmp_path, capsys):
    for i in range(9):
        _run(tmp_path / str(i), _lines(loss=1.0))
    with pytest.raises(PlotError, match="9 runs cannot be told apart in one chart: give at most 8"):
        find_runs([tmp_path / str(i) for i in range(9)])
    with pytest.raises(SystemExit):
        main(["plot", str(tmp_path / "0"), "--out", str(tmp_path / "a.jpg")])
    assert "--out must end in .png" in capsys.readouterr().err


def test_plotting_needs_no_torch(tmp_path):
    import subprocess
    import sys

    script = "import sys, maskimg.training.tracking.curves; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
