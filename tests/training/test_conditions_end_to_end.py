"""Captions and sources the whole way: a folder, a model, pictures, all from the command line."""

import csv
import json

import pytest
import torch
from PIL import Image
from quick import QUICK, instead

from maskimg.cli.main import main
from maskimg.data.codes import read_codes
from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from vqgan import load_image

QUICKER = instead(
    QUICK, "--tokenizer_budget.steps", "20", "--generator_budget.steps", "30", "--generator.critic_depth", "0"
)


@pytest.fixture(scope="module")
def folder(draw_pictures, tmp_path_factory):
    """Pictures with captions, and one without."""
    path = tmp_path_factory.mktemp("pictures")
    draw_pictures(path, count=40, size=16, classes=("circle", "square"))
    files = sorted(path.rglob("*.png"))
    with (path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "shape", "caption"])
        for i, name in enumerate(files):
            shape = name.parent.name
            caption = "" if i == 3 else f"a {('red', 'blue')[i % 2]} {shape}"
            writer.writerow([name.relative_to(path), shape, caption])
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A model that knows labels and words, and translates grey pictures."""
    out = tmp_path_factory.mktemp("models") / "shapes"
    main(["train", str(folder), "--out", str(out), *QUICKER, "--source", "grey"])
    return out


def test_train_learns_the_words_and_says_where_pictures_come_from(trained):
    about = json.loads((trained / "pipeline.json").read_text())
    assert {"a", "red", "blue", "circle", "square"} <= set(about["words"]["vocabulary"])
    assert about["source"] == "grey"
    assert torch.isfinite(torch.tensor(about["measured"]["held_out_nats_per_masked_token"]))
    net = Pipeline.from_pretrained(trained, device="cpu").net
    assert [source.name for source in net.sources] == ["words", "picture"]


def test_info_and_the_card_say_what_the_model_listens_to(trained, capsys):
    main(["info", str(trained)])
    told = capsys.readouterr().out
    assert "prompts: 5 words of its training captions, such as " in told
    assert "translates: grey" in told
    assert "Translates pictures: grey." in (trained / "README.md").read_text()


def test_sample_draws_from_words_and_writes_them_into_the_picture(trained, tmp_path):
    main(["sample", "--model", str(trained), "--out", str(tmp_path), "--count", "1", "--label", "circle",
          "--prompt", "a red circle", "--negative", "a blue square", "--guide", "words=2"])  # fmt: skip
    recipe = read_recipe(tmp_path / "000000.png")
    assert recipe is not None
    assert (recipe["prompt"], recipe["negative"]) == ("a red circle", "a blue square")
    assert recipe["sampler"]["field_guidance"] == {"words": 2.0}


def test_translate_keeps_the_shape_of_the_picture(trained, tmp_path):
    Image.new("RGB", (40, 20), (10, 200, 30)).save(tmp_path / "photo.png")
    main(["translate", str(tmp_path / "photo.png"), "--model", str(trained), "--out", str(tmp_path / "out.png")])
    assert load_image(tmp_path / "out.png").size == (16, 8)
    main(["translate", str(tmp_path / "photo.png"), "--model", str(trained), "--out", str(tmp_path / "more"),
          "--count", "2"])  # fmt: skip
    assert len(list((tmp_path / "more").glob("*.png"))) == 2


def test_stage_by_stage_is_the_same_way(trained, folder, tmp_path):
    codes, model = tmp_path / "codes", tmp_path / "model"
    main(
        [
            "encode",
            str(folder),
            str(trained),
            "--size",
            "16",
            "--versions",
            "2",
            "--source",
            "grey",
            "--out",
            str(codes),
        ]
    )
    source = read_codes(tmp_path / "codes.source")
    assert source.kind == "grey" and source.names == read_codes(codes).names
    main(["train-generator", str(codes), str(trained), "--out", str(model), *QUICKER])
    pipeline = Pipeline.from_pretrained(model, device="cpu")
    assert pipeline.about["source"] == "grey" and pipeline.words is not None
    pipeline.translate(Image.new("RGB", (16, 16)), prompt="a red square")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["sample", "--count", "1", "--prompt", "x" * 10_000], "this prompt has 10,000 characters"),
        (["sample", "--count", "1", "--prompt", "zeppelin " * 40], "word pieces long, and the model reads at most"),
        (["sample", "--count", "1", "--label", "triangle"], "there is no shape `triangle`"),
        (["sample", "--count", "1", "--towards", "square", "--share", "2"], "share must be between 0 and 1, got 2.0"),
        (["sample", "--count", "1", "--share", "0.5"], "--share goes with --towards"),
        (
            ["sample", "--count", "1", "--guide", "words"],
            "--guide must be FIELD=STRENGTH, such as style=3",
        ),
        (["sample", "--count", "1", "--guide", "colour=2"], "there is no field `colour` for guidance"),
        (["translate", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(trained, arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--model", str(trained), "--out", str(tmp_path / "out.png")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("maskimg: ") and sentence in error


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--source", "sepia"], "`sepia`"),
        (["--source-tokenizer", "x"], "--source-tokenizer goes with --source"),
    ],
)
def test_sources_that_cannot_be_are_one_line(trained, folder, options, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["encode", str(folder), str(trained), "--size", "16", "--out", str(tmp_path / "codes"), *options])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_in_which_pairs_are_missing_is_one_line(folder, tmp_path, capsys):
    other = tmp_path / "sources"
    other.mkdir()
    Image.new("RGB", (16, 16)).save(other / "alone.png")
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(folder), "--out", str(tmp_path / "model"), *QUICKER, "--source", str(other)])
    assert stopped.value.code == 2
    assert "40 of 40 pictures have no source in" in capsys.readouterr().err
