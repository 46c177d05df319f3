"""A folder of drawn pictures through every command, as a person would type them."""

import json
import shutil

import pytest
from PIL import Image
from quick import QUICK, instead

from maskimg.cli.main import main
from maskimg.recipe import read_recipe
from vqgan import load_image


@pytest.fixture(scope="module")
def folder(draw_pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    draw_pictures(path, count=60, size=16, classes=("circle", "square"))
    (path / "circle" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "shapes"
    main(["train", str(folder), "--out", str(out), *QUICK])
    return out


def test_train_writes_a_model_whose_loss_fell_and_names_the_bad_file(trained, folder, capsys):
    about = json.loads((trained / "pipeline.json").read_text())
    assert about["labels"] == {"class": ["circle", "square"]}
    assert about["data"]["pictures"] == 60
    assert about["measured"]["held_out_psnr_db"] > 8
    assert load_image(trained / "samples.png").width > 16
    assert load_image(trained / "nearest.png").size == (8 * 18 + 2, 8 * 18 + 2)  # 32 samples, each above a picture
    assert about["memorisation"]["samples"] == 32
    assert f"Memorisation: {about['memorisation']['in_words']}." in (trained / "README.md").read_text()

    work = trained.with_name("shapes.training")
    status = json.loads((work / "status.json").read_text())
    assert (status["state"], status["stage"], status["share"]) == ("done", "critic", 1.0)
    assert "broken.png" in (work / "pictures" / "bad.txt").read_text()
    for stage in ("tokenizer", "generator", "critic"):
        lines = [json.loads(line) for line in (work / stage / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] <= 60
        assert all(line["seconds"] >= 0 for line in lines)


def test_a_rerun_of_train_finds_everything_finished(trained, folder, capsys):
    before = json.loads((trained / "pipeline.json").read_text())["measured"]
    main(["train", str(folder), "--out", str(trained), *QUICK])
    assert json.loads((trained / "pipeline.json").read_text())["measured"] == before
    loss, guessed = before["held_out_nats_per_masked_token"], before["held_out_nats_by_guessing"]
    assert ("hardly learnt" in capsys.readouterr().out) == (loss > 0.95 * guessed)


def test_the_trained_model_samples_inpaints_reconstructs_and_doubts(trained, folder, tmp_path, capsys):
    main(["sample", "--model", str(trained), "--out", str(tmp_path / "out"), "--count", "3", "--label", "circle"])
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    options = ["--preset", "fast", "--best-of", "2", "--label", "square"]
    main(["sample", "--model", str(trained), "--out", str(tmp_path / "best"), "--count", "2", *options])
    recipe = read_recipe(tmp_path / "best" / "000001.png")
    assert (recipe["best_of"], recipe["sampler"]["steps"], recipe["label"]) == (2, 8, {"class": "square"})

    picture = next((folder / "square").glob("*.png"))
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    main(
        ["inpaint", str(picture), str(tmp_path / "mask.png"), "--model", str(trained), "--out", str(tmp_path / "a.png")]
    )
    main(["reconstruct", str(picture), "--model", str(trained), "--out", str(tmp_path / "b.png")])
    main(["doubts", str(picture), "--model", str(trained), "--out", str(tmp_path / "c.png"), "--label", "square"])
    assert {load_image(tmp_path / f"{name}.png").size for name in "abc"} == {(16, 16)}


def test_the_stages_one_by_one_give_a_model_too(folder, tmp_path, capsys):
    tokenizer, codes, model = (str(tmp_path / name) for name in ("tokenizer", "codes", "model"))
    main(["train-tokenizer", str(folder), "--out", tokenizer, *QUICK])
    main(["encode", str(folder), tokenizer, "--size", "16", "--versions", "2", "--out", codes])
    main(["train-generator", codes, tokenizer, "--out", model, *QUICK])
    main(["sample", "--model", model, "--out", str(tmp_path / "out"), "--count", "1", "--label", "square"])
    assert (tmp_path / "out" / "000000.png").exists()


def test_an_archive_goes_through_every_stage(folder, tmp_path, capsys):
    """Also that a tokenizer which did not encode the codes is refused: it would decode them to something else."""
    archive = shutil.make_archive(str(tmp_path / "shapes"), "zip", folder)
    quick = instead(
        QUICK, "--tokenizer_budget.steps", "3", "--generator_budget.steps", "3", "--critic_budget.steps", "2"
    )
    tokenizers = [str(tmp_path / name) for name in ("one", "other")]
    for name, seed in zip(tokenizers, "01", strict=True):
        main(["train-tokenizer", archive, "--out", name, *quick, "--tokenizer_training.seed", seed])
    codes = str(tmp_path / "codes")
    main(["encode", archive, tokenizers[0], "--out", codes, "--size", "16", "--crops", "2"])
    command = ["train-generator", codes, tokenizers[0], "--out", str(tmp_path / "model"), *quick]
    main(command)
    assert main(["eval-tokenizer", str(tmp_path / "model"), archive, "--classifier-steps", "0"]) == 0
    assert capsys.readouterr().err.count("left out: ") == 4  # the same file each time

    with pytest.raises(SystemExit) as stop:
        main([*command[:2], tokenizers[1], *command[3:]])
    assert stop.value.code == 2
    assert "the codes were encoded with another tokenizer" in capsys.readouterr().err
