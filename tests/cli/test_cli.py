"""The command line: bad input gives one sentence and exit code 2, never a traceback, and writes nothing."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_pipeline

from maskimg.cli.main import main
from maskimg.cli.plan_words import GROUPS
from maskimg.data.pictures import list_pictures
from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from maskimg.training.plan import Plan
from vqgan import Tokenizer, load_image


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 24), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def mask(tmp_path) -> Path:
    path = tmp_path / "mask.png"
    painted = np.zeros((24, 40), np.uint8)
    painted[4:6, 3:30] = 255
    Image.fromarray(painted).save(path)
    return path


def refused(capsys, *arguments: object) -> str:
    """The sentence with which the command refuses."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("maskimg: ")
    return error


def test_the_long_help_of_training_begins_with_what_most_people_need_and_leaves_nothing_out(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: maskimg train FOLDER --out OUT [")
    places = [shown.index(f"  --{name} ") for name in ("out", "preset", "minutes", "config", "device", "size")]
    assert places == sorted(places)
    headings = [line for line in shown.splitlines() if line.rstrip(":") in GROUPS.values()]
    assert len(headings) == len(set(headings)) == 9
    for field in dataclasses.fields(Plan):
        assert f"--{field.name}" in shown


def test_the_installed_command_answers_bad_input_without_a_traceback():
    done = subprocess.run([sys.executable, "-m", "maskimg", "info", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "maskimg: there is no model directory `nowhere`\n"


def test_info_tells_what_was_measured_in_words(capsys):
    assert main(["info", "emoji-64"]) == 0
    told = capsys.readouterr().out
    assert "measured, judge: accuracy_train 0.8135" in told and "data, held_out: 487" in told
    assert "{" not in told and "[" not in told


def test_sample_writes_the_asked_pictures_and_a_rerun_draws_only_what_is_missing(model, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["sample", "--model", str(model), "--out", str(out), "--count", "5", "--seed", "9", "--label", "cat"]
    assert main(arguments) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert sorted(before) == [f"{seed:06d}.png" for seed in range(9, 14)]

    (out / "000010.png").unlink()
    (out / "000012.png").write_bytes(before["000012.png"][:60])  # as a full disk would leave it
    assert main([*arguments, "--batch-size", "1"]) == 0
    assert "2 new, 5 in all" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before


def test_sample_refuses_a_folder_that_holds_pictures_of_another_recipe(model, tmp_path, capsys):
    out = tmp_path / "out"
    main(["sample", "--model", str(model), "--out", str(out), "--count", "1"])
    assert "another recipe" in refused(
        capsys, "sample", "--model", model, "--out", out, "--count", "1", "--label", "cat"
    )


def test_labels_may_be_plain_and_named(model, tmp_path):
    out = tmp_path / "out"
    main(
        ["sample", "--model", str(model), "--out", str(out), "--count", "1", "--label", "cat", "--label", "style=flat"]
    )
    recipe = read_recipe(out / "000000.png")
    assert recipe["label"] == {"class": "cat", "style": "flat"}


def test_inpaint_keeps_every_pixel_outside_the_redrawn_tokens(model, picture, mask, tmp_path):
    out = tmp_path / "new.png"
    main(["inpaint", str(picture), str(mask), "--model", str(model), "--out", str(out), "--grow", "0"])
    changed = (np.array(load_image(out)) != np.array(load_image(picture))).any(-1)
    assert changed.any()
    assert not changed[12:].any()  # paint in rows 4 and 5 reaches the tokens of the upper half at most


def test_an_extended_picture_is_the_librarys_and_keeps_its_own_pixels(model, picture, tmp_path, capsys):
    out = tmp_path / "wide.png"
    pipeline = Pipeline.from_pretrained(model, device="cpu")
    arguments = ["outpaint", str(picture), "--model", str(model), "--out", str(out), "--seed", "4", "--label", "cat"]
    main([*arguments, "--margins", "1,0,2,0"])
    expected = pipeline.outpaint(picture, (1, 0, 2, 0), "cat", seeds=4)
    assert out.read_bytes() == expected.save(tmp_path / "library")[0].read_bytes()
    assert load_image(out).size == (57, 24)
    assert load_image(out).crop((6, 0, 46, 24)).tobytes() == load_image(picture).tobytes()
    assert "done: 12 of 40 tokens redrawn" in capsys.readouterr().out
    before = out.read_bytes()
    main([*arguments, "--left", "1", "--right", "2"])
    assert out.read_bytes() == before


def test_variations_are_the_librarys(model, picture, mask, tmp_path):
    pipeline = Pipeline.from_pretrained(model, device="cpu")
    arguments = ["vary", str(picture), "--model", str(model), "--strength", "0.4", "--seed", "4"]
    main([*arguments, "--out", str(tmp_path / "several"), "--count", "2"])
    expected = pipeline.vary(picture, 0.4, seeds=4, count=2).save(tmp_path / "library")
    written = sorted((tmp_path / "several").iterdir())
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in expected]
    main([*arguments, "--out", str(tmp_path / "part.png"), "--mask", str(mask)])
    expected = pipeline.vary(picture, 0.4, mask=mask, seeds=4).save(tmp_path / "library")
    assert (tmp_path / "part.png").read_bytes() == expected[0].read_bytes()


def test_edits_that_cannot_be_done_get_a_sentence(model, picture, mask, tmp_path, capsys):
    ending = ["--model", model, "--out", tmp_path / "new.png"]
    cases = [
        (["outpaint", picture], "margins must be between 0 and 2 tokens"),
        (["outpaint", picture, "--left", "9"], "half the model's grid, and not all 0, got 9,0,0,0"),
        (["outpaint", picture, "--margins", "1,2"], "--margins must be four whole numbers such as 2,0,2,0, got `1,2`"),
        (["outpaint", picture, "--margins", "1,0,0,0", "--top", "1"], "either --margins or single sides"),
        (["outpaint", picture, "--left", "1", "--window", "30"], "at most the picture's shorter side, 24, got 30"),
        (["outpaint", tmp_path / "none.png", "--left", "1"], "there is no such file"),
        (["vary", picture, "--strength", "2"], "strength must be above 0 and at most 1, got 2.0"),
        (["vary", picture, "--strength", "much"], "must be a number"),
        (["vary", picture, "--mask", tmp_path / "none.png"], "there is no such file"),
        (["inpaint", picture, mask, "--window", "0"], "the window must be 1 pixel or more, got 0"),
        (["inpaint", picture, mask, "--feather", "3"], "feather must be between 0 and 1, got 3.0"),
    ]
    for arguments, words in cases:
        assert words in refused(capsys, *arguments, *ending)
    assert not (tmp_path / "new.png").exists()


def test_reconstruct_and_info_answer(model, picture, tmp_path, capsys):
    out = tmp_path / "restored.png"
    main(["reconstruct", str(picture), "--model", str(model), "--out", str(out)])
    assert load_image(out).size == (16, 10)
    shown = capsys.readouterr().out
    facts = Pipeline.from_pretrained(model, device="cpu").reconstruct(picture).facts()
    assert shown.splitlines() == [f"{name}: {value}" for name, value in facts.items()] + [f"done: in {out}"]
    main(["reconstruct", str(picture), "--model", str(model), "--out", str(out), "--size", "32"])
    assert load_image(out).size == (32, 20)
    assert "tokens: 40 (5x8)" in capsys.readouterr().out
    main(["info", str(model)])
    shown = capsys.readouterr().out
    assert "4x4 tokens, 64 codes" in shown
    assert "class: bird, bug, cat" in shown


def test_a_tokenizer_is_measured_on_a_folder(model, tmp_path, draw_pictures, capsys):
    draw_pictures(tmp_path / "pictures", count=60)
    written = {"json": tmp_path / "new" / "figures.json", "sheet": tmp_path / "new" / "sheet.png"}
    options = [f"--{name}={path}" for name, path in written.items()]
    assert main(["eval-tokenizer", str(model), str(tmp_path / "pictures"), "--classifier-steps=3", *options]) == 0

    held_out = int(list_pictures(tmp_path / "pictures").held_out.sum())
    shown, progress = capsys.readouterr()
    assert f"{held_out} held-out pictures of 16x16 pixels" in shown
    for name in ("PSNR", "SSIM", "codes used", "entropy", "bits per picture", "accuracy kept", "its floor", "not FID"):
        assert name in shown
    assert "pictures/s" in progress
    figures = json.loads(written["json"].read_text())
    assert figures["pictures"] == held_out and figures["grid"] == [4, 4]
    assert f"{figures['psnr_db']:.2f} dB" in shown
    for name, key in (("LPIPS", "lpips"), ("rFID", "rfid")):
        assert (figures[key] is None) == (f"{name}: not measured: " in shown) == (name in figures["not_measured"])
    assert load_image(written["sheet"]).size == (18 * held_out + 2, 3 * 18 + 2)


def test_a_tokenizer_alone_is_measured_at_any_size_its_stride_divides(model, tmp_path, draw_pictures, capsys):
    draw_pictures(tmp_path / "pictures", count=20, classes=(), size=21)
    Tokenizer.from_pretrained(model).save_pretrained(tmp_path / "tokenizer")
    command = ["eval-tokenizer", str(tmp_path / "tokenizer"), str(tmp_path / "pictures"), "--held-out", "0.5"]
    main(command)
    shown = capsys.readouterr().out
    assert "10 held-out pictures of 20x20 pixels" in shown
    assert "Fréchet distance: not measured: needs a folder with labels" in shown
    main([*command, "--size", "12", "--count", "4"])
    assert "4 held-out pictures of 12x12 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--count", "0"], "--count must be 1 or more"),
        (["--classifier-steps", "-1"], "--classifier-steps and --size 0 or more"),
        (["--held-out", "1.5"], "--held-out must be more than 0 and at most 1, got 1.5"),
        (["--held-out", "0.001"], "is less than one picture: hold out more"),
        (["--size", "18"], "--size must be a multiple of the tokenizer's stride 4, got 18"),
        (["--sheet", "sheet.gif"], "--sheet must end in .png, got `sheet.gif`"),
        (["--json", "."], "--json must name a file, and `.` is a folder"),
        (["--device", "abacus"], "there is no device `abacus`"),
    ],
)
def test_a_tokenizer_cannot_be_measured_with_wrong_options(model, options, sentence, tmp_path, draw_pictures, capsys):
    draw_pictures(tmp_path, count=3)
    assert sentence in refused(capsys, "eval-tokenizer", model, tmp_path, *options)


def test_what_is_no_tokenizer_or_no_folder_gets_a_sentence(model, tmp_path, capsys):
    assert "there is no model directory" in refused(capsys, "eval-tokenizer", tmp_path / "none", tmp_path)
    assert "there is no folder" in refused(capsys, "eval-tokenizer", model, tmp_path / "none")
    assert "holds no PNG, JPEG, WebP" in refused(capsys, "eval-tokenizer", model, tmp_path)
    assert "it has no manifest.json" in refused(capsys, "eval-tokenizer", tmp_path, tmp_path)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["sing"], "there is no command `sing`"),
        (["sample"], "out"),
        (["sample", "--out", "x", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["sample", "--out", "x", "--steps", "many"], "--steps must be a whole number, got `many`"),
        (["sample", "--out", "x", "--steps", "0"], "steps must be between 1 and 1024, got 0"),
        (["sample", "--out", "x", "--guidance", "nan"], "guidance must be between 0 and 20, got nan"),
        (["sample", "--out", "x", "--order", "spiral"], "order must be one of confidence"),
        (["sample", "--out", "x", "--count", "0"], "--count must be between 1 and 10000000, got 0"),
        (["sample", "--out", "x", "--seed", "-1"], "seed must be between 0 and 4294967295"),
        (["sample", "--out", "x", "--label", "cta"], "there is no class `cta`; did you mean `cat`?"),
        (["sample", "--out", "x", "--label", "mood=gay"], "there is no label field `mood`"),
        (["sample", "--out", "x", "--label", "cat", "--label", "bug"], "give one plain --label"),
        (["sample", "--out", "x", "--device", "abacus"], "there is no device `abacus`"),
        (["sample", "--out", "x", "--dtype", "fp13"], "dtype must be"),
    ],
)
def test_wrong_arguments_get_a_sentence(model, arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = ["--model", str(model)] if arguments[0] == "sample" and len(arguments) > 1 else []
    assert sentence in refused(capsys, *arguments, *extra)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_used_gets_a_sentence(model, tmp_path, capsys):
    assert "there is no model directory" in refused(capsys, "info", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "it has no manifest.json" in refused(capsys, "info", tmp_path / "empty")

    for damage, sentence in (("flip", "is damaged"), ("cut", "is incomplete"), ("remove", "is missing")):
        copy = tmp_path / damage
        shutil.copytree(model, copy)
        weights = copy / "generator" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data if damage == "flip" else data[:-9])
        if damage == "remove":
            weights.unlink()
        assert sentence in refused(capsys, "sample", "--model", copy, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_used_gets_a_sentence(model, picture, mask, tmp_path, capsys):
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    small = tmp_path / "small.png"
    Image.new("L", (10, 10), 255).save(small)
    empty = tmp_path / "black.png"
    Image.new("L", (40, 24)).save(empty)
    ending = ["--model", model, "--out", tmp_path / "out.png"]
    assert "not a readable PNG" in refused(capsys, "reconstruct", text, *ending)
    assert "there is no such file" in refused(capsys, "inpaint", tmp_path / "none.png", mask, *ending)
    assert "the mask is 10x10 but the image is 40x24" in refused(capsys, "inpaint", picture, small, *ending)
    assert "nothing is painted" in refused(capsys, "inpaint", picture, empty, *ending)
    assert "must end in .png" in refused(
        capsys, "reconstruct", picture, "--model", model, "--out", tmp_path / "out.gif"
    )
    assert "holds no maskimg recipe" in refused(capsys, "info", picture)
    assert not (tmp_path / "out.png").exists()


def test_a_folder_that_cannot_be_trained_on_gets_a_sentence(tmp_path, capsys):
    ending = ["--out", tmp_path / "model", "--preset", "cpu"]
    assert "there is no folder" in refused(capsys, "train", tmp_path / "none", *ending)
    (tmp_path / "empty").mkdir()
    assert "holds no PNG, JPEG, WebP" in refused(capsys, "train", tmp_path / "empty", *ending)
    (tmp_path / "bad").mkdir()
    for i in range(6):
        (tmp_path / "bad" / f"{i}.png").write_text("not a picture")
    assert "none of the 6 pictures" in refused(capsys, "train", tmp_path / "bad", *ending)
    assert "--minutes must be more than 0" in refused(capsys, "train", tmp_path / "bad", *ending, "--minutes", "0")
    assert "size must be a multiple of 8" in refused(capsys, "train", tmp_path / "bad", *ending, "--size", "30")
    assert "unrecognized arguments: --generator.deep" in refused(
        capsys, "train", tmp_path / "bad", *ending, "--generator.deep", "3"
    )
    config = tmp_path / "config.yaml"
    config.write_text("generator:\n  deep: 3\n")
    assert "deep" in refused(capsys, "train", tmp_path / "bad", *ending, "--config", config)
    assert not (tmp_path / "model").exists()


def test_whoever_stops_reading_hears_no_complaint():
    """As with `maskimg info | head -1`."""
    for arguments in (["info", "emoji-64"], ["--help"]):
        command = [sys.executable, "-m", "maskimg", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stderr
            process.stdout.close()
            complaint = process.stderr.read()
        assert (process.returncode, complaint) == (128 + 13, "")
