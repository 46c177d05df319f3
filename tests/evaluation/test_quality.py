"""What is measured of samples: right on cases where the answer is known, and honest about what it is."""

import dataclasses
import json
import re

import pytest
import torch
from helpers import tiny_pictures
from tiny import LABELS, tiny_pipeline

from maskimg.cli.main import main
from maskimg.data.pictures import Pictures
from maskimg.evaluation import quality
from maskimg.evaluation.judge import Judge, judge_for, kept_judge
from maskimg.evaluation.outside import NotMeasured
from maskimg.evaluation.quality import Samples, draw_samples, measure_samples, own_figures, refer
from maskimg.evaluation.sample_report import markdown, summary
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from vqgan import load_image
from vqgan.files import ModelError


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return tiny_pictures(90, held_out=30)


@pytest.fixture(scope="module")
def judge(pictures) -> Judge:
    made = judge_for(pictures, 5)
    assert isinstance(made, Judge)
    return made


def as_samples(pipeline, pixels: torch.Tensor, classes: torch.Tensor) -> Samples:
    codes = quality.encode_all(pipeline.tokenizer, pixels)
    return Samples(pixels, codes, classes, Sampler(), 0, 1.0)


# ----------------------------------------------------------------------------- drawing


def test_samples_have_the_labels_of_training_pictures_and_seeds_of_their_own(pipeline, pictures):
    training = pictures.part(held_out=False)
    samples = draw_samples(pipeline, training, 7, seed=20)
    rows = quality.scattered(60)[:7]
    assert samples.classes.tolist() == training.labels[rows, 0].tolist()
    for i, row in enumerate(rows):
        label = {field: names[training.labels[row, column]] for column, (field, names) in enumerate(LABELS.items())}
        alone = pipeline.generate(label, seeds=20 + i)
        assert torch.equal(samples.codes[i], alone.codes[0])
    assert samples.pixels.shape == (7, 3, 16, 16)
    assert samples.pixels.dtype == torch.uint8


def test_more_samples_begin_with_the_same_ones(pipeline, pictures):
    """So that samplers are compared with common random numbers, however many pictures a round has."""
    few, many = (draw_samples(pipeline, pictures.part(held_out=False), count, sampler="fast") for count in (4, 9))
    assert torch.equal(few.codes, many.codes[:4])
    assert few.sampler == pipeline.presets["fast"]


def test_labels_that_the_model_does_not_know_are_not_asked_for(pipeline, pictures):
    known = dataclasses.replace(pictures, fields={"class": ["bird", "dog", "cat"], "mood": LABELS["style"]})
    labels, classes = quality._labels_of(pipeline, known, [0, 1, 2])
    assert labels == [{"class": "bird"}, None, {"class": "cat"}]
    assert classes == [0, -1, 2]
    plain = tiny_pipeline(labels=False)
    assert draw_samples(plain, pictures, 2).classes.tolist() == [-1, -1]


def test_nothing_to_draw_is_refused(pipeline, pictures):
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        draw_samples(pipeline, pictures, 0)


# ----------------------------------------------------------------------------- figures


def test_samples_that_are_the_training_pictures_are_perfect_and_known_for_copies(pipeline, pictures, judge):
    training = pictures.part(held_out=False)
    samples = as_samples(pipeline, training.pixels, training.labels[:, 0])
    reference = refer(pictures, judge)
    report, nearest = measure_samples(pipeline, samples, reference)

    assert report.own_frechet_distance == pytest.approx(0, abs=1e-6)
    assert report.own_frechet_low == 0 and (report.own_frechet_high or 0) > 0
    assert (report.samples, report.training, report.held_out) == (60, 60, 30)
    assert report.alike is not None and report.floor is not None
    assert (report.alike.count, report.floor.count) == (30, 30)
    assert report.alike.frechet_distance < report.floor.frechet_distance
    assert report.alike.precision == report.alike.recall == report.alike.coverage == 1
    assert report.own_accuracy == judge.accuracy(training.pixels, training.labels[:, 0])
    assert report.memorisation["most"] == report.memorisation["shared"] == 1
    assert any("may be copies" in warning for warning in report.warnings)
    assert any("30 pictures are few for a Fréchet distance" in warning for warning in report.warnings)
    assert any("only 30 pictures are held out: below 256" in warning for warning in report.warnings)
    page = quality.nearest_page(samples, reference, nearest)
    assert page.size == (8 * 18 + 2, 12 * 18 + 2)  # six rows of pairs
    assert page.crop((2, 2, 18, 18)).tobytes() == page.crop((2, 20, 18, 36)).tobytes()


def test_noise_is_far_from_the_pictures_and_no_copy(pipeline, pictures, judge):
    noise = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    samples = as_samples(pipeline, noise, torch.zeros(40, dtype=torch.int64))
    reference = refer(pictures, judge)
    report, _ = measure_samples(pipeline, samples, reference)
    assert report.alike is not None and report.floor is not None
    assert report.alike.frechet_distance > 3 * report.floor.frechet_distance
    assert report.alike.recall == 0 < report.floor.recall
    assert report.alike.density < 0.6 < report.floor.density
    assert report.alike.coverage < report.floor.coverage
    assert not any("copies" in warning for warning in report.warnings)
    figures = own_figures(samples, reference)
    assert figures == {
        "own_frechet_distance": report.own_frechet_distance,
        "own_accuracy": report.own_accuracy,
    }


def test_every_figure_of_our_own_classifier_says_that_it_is_none_of_inceptions(pipeline, pictures, judge):
    report, _ = measure_samples(
        pipeline, draw_samples(pipeline, pictures.part(held_out=False), 12), refer(pictures, judge)
    )
    lines = summary(report).splitlines()
    own = [line for line in lines if re.match("(Fréchet|class accuracy|precision|recall|density|coverage)", line)]
    assert len(own) == 7
    assert all("our own classifier" in line for line in own)
    assert sum("not FID" in line for line in own) == 2
    assert "FID: not measured: was not asked for" in lines
    assert all(name.startswith("own_") or "frechet" not in name for name in vars(report))
    card = markdown(report, "maskimg eval a b", "2026-01-02")
    assert card.startswith("`maskimg eval a b`, 2026-01-02; ")
    assert "Our own classifier" in card and "compare with nothing outside" in card
    assert "| | samples | held-out pictures | |" in card


def test_without_a_classifier_or_held_out_pictures_the_report_says_so(pipeline, pictures, judge):
    samples = draw_samples(pipeline, pictures, 12)
    alone, _ = measure_samples(pipeline, samples, refer(pictures, NotMeasured("was left out")))
    assert alone.own_frechet_distance is alone.alike is alone.own_accuracy is None
    assert "own classifier: not measured: was left out" in summary(alone)
    assert alone.memorisation["samples"] == 12
    with pytest.raises(ValueError, match="compared with a classifier of our own, which was left out"):
        own_figures(samples, refer(pictures, NotMeasured("was left out")))

    plain = dataclasses.replace(pictures, fields={}, labels=torch.zeros(90, 0, dtype=torch.int64))
    bare, _ = measure_samples(pipeline, draw_samples(pipeline, plain, 6), refer(plain, judge_for(plain, 3)))
    assert "needs a folder with labels" in summary(bare)

    everything = dataclasses.replace(pictures, held_out=torch.zeros(90, dtype=torch.bool))
    report, _ = measure_samples(pipeline, samples, refer(everything, judge))
    assert report.floor is None and report.alike is not None
    assert report.not_measured["the floor"] == "no picture is held out"
    assert not any("held out" in warning for warning in report.warnings)
    rare = dataclasses.replace(pictures, held_out=torch.arange(90) >= 88)
    report, _ = measure_samples(pipeline, samples, refer(rare, judge))
    assert report.floor is None and report.alike is not None and report.alike.count == 12
    assert report.not_measured["the floor"] == "only 2 pictures are held out"
    few, _ = measure_samples(pipeline, draw_samples(pipeline, pictures, 4), refer(pictures, judge))
    assert few.alike is None and "need six pictures" in few.not_measured["precision and recall"]
    with pytest.raises(ValueError, match="no training pictures"):
        refer(pictures.part(held_out=True), judge)


def test_fid_needs_pictures_enough_and_a_warning_below_the_usual_number(pipeline, pictures, judge, monkeypatch):
    def inception(part):
        assert part.dtype == torch.uint8
        return part.float().mean((2, 3)), part.float().mean((2, 3)) / 9

    samples, reference = draw_samples(pipeline, pictures.part(held_out=False), 30), refer(pictures, judge)
    report, _ = measure_samples(pipeline, samples, reference, inception=inception)
    assert report.fid is None
    assert "needs 2,048 samples and as many training pictures or more, and there are 30" in report.not_measured["FID"]

    monkeypatch.setattr(quality, "INCEPTION_LEAST", 20)
    report, _ = measure_samples(pipeline, samples, reference, inception=inception)
    assert None not in (report.fid, report.inception_recall, report.inception_precision, report.fid_low)
    assert report.fid_low <= report.fid <= report.fid_high
    assert report.inception_score >= 1
    assert any("FID of 30 samples is higher than of the usual 50,000" in warning for warning in report.warnings)
    assert re.search(r"^FID +[\d.]+ \([\d.]+ to [\d.]+\)", summary(report), re.M)


def test_a_judge_is_trained_once_and_kept(pictures, tmp_path):
    first = kept_judge(tmp_path / "judge", pictures, 3)
    again = kept_judge(tmp_path / "judge", pictures, 3000000)
    assert isinstance(first, Judge) and isinstance(again, Judge)
    assert torch.equal(first.features(pictures.pixels), again.features(pictures.pixels))
    assert isinstance(kept_judge(tmp_path / "none", pictures, 0), NotMeasured)
    other = dataclasses.replace(pictures, fields={"class": ["a", "b", "c", "d"], "style": ["flat", "round"]})
    with pytest.raises(ModelError, match="does not fit"):
        kept_judge(tmp_path / "judge", other, 3)


# ----------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw_pictures):
    path = tmp_path_factory.mktemp("pictures")
    draw_pictures(path, count=240, size=16)
    for shape, name in zip(("circle", "square", "triangle"), LABELS["class"], strict=True):
        (path / shape).rename(path / name)
    return path


def test_the_command_measures_and_writes_the_card(folder, tmp_path, capsys):
    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    written = [f"--json={tmp_path / 'new' / 'figures.json'}", f"--sheet={tmp_path / 'sheet.png'}", "--write"]
    command = ["eval", str(model), str(folder), "--count=9", "--classifier-steps=2", "--preset=fast", *written]
    assert main(command) == 0

    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert figures["samples"] == 9 and figures["held_out"] + figures["training"] == 240
    assert f"{figures['own_frechet_distance']:.3g} (" in shown
    assert figures["sampler"]["steps"] == 8  # the preset's
    again = Pipeline.from_pretrained(model, device="cpu")
    said = again.about["measured"]["samples"]
    assert said["command"] == "maskimg " + " ".join(command)
    assert said["own_accuracy"] == figures["own_accuracy"]
    card = (model / "README.md").read_text()
    assert "## Measured with `maskimg eval`" in card and said["command"] in card
    assert "not FID" in card and "memorisation:" in card
    assert load_image(tmp_path / "sheet.png").size == (8 * 18 + 2, 4 * 18 + 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--count", "0"], "--count must be 1 or more"),
        (["--classifier-steps", "-1"], "--classifier-steps 0 or more"),
        (["--preset", "slow"], "there is no preset `slow`"),
        (["--json", "."], "--json must name a file"),
        (["--label", "cat"], "unrecognized arguments: --label cat"),
    ],
)
def test_wrong_options_get_a_sentence(folder, tmp_path, options, sentence, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(tmp_path / "model"), str(folder), *options])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_only_a_directory_can_be_written_to(folder, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "emoji-64", str(folder), "--write"])
    assert "--write needs a model directory, and `emoji-64` is not one" in capsys.readouterr().err
