"""The demo without a browser: what its calls answer, what its errors say, and who may reach it."""

import dataclasses
import errno
import io
import itertools
import json
import math
import os
import pickle
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from page_values import VALUES
from PIL import Image
from tiny import tiny_pipeline

from maskimg.cli.main import main
from maskimg.drawing import edits
from maskimg.drawing.request import Request
from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from maskimg_apps.demo import app, board, drawing, replay, running, runs, tokens
from maskimg_apps.demo.serving.uploads import MAX_BLOBS, Drawing, RecentBlobs, guard_editor, open_mask, open_upload
from maskimg_apps.demo.tabs import about
from vqgan import ImageError, load_image

# Gradio's own statistics, every few calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def address(pipeline, tmp_path_factory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = app.build(pipeline)
        yield app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0)))
        page.close(verbose=False)


@pytest.fixture(scope="module")
def client(address, tmp_path_factory) -> Iterator[Client]:
    client = Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield client
    client.close()


# ----------------------------------------------------------------------------- the calls


def test_the_calls_are_the_documented_ones(client):
    calls = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert set(calls) == {
        "/generate", "/inpaint", "/outpaint", "/vary", "/reconstruct", "/read_recipe", "/model_info"
    }  # fmt: skip
    names = [parameter["parameter_name"] for parameter in calls["/generate"]["parameters"]]
    assert names == ["label_class", "label_style", *VALUES]
    names = [parameter["parameter_name"] for parameter in calls["/inpaint"]["parameters"]]
    assert names == ["image", "mask", "grow", "coverage", "sight", "label_class", "label_style", *VALUES]
    names = [parameter["parameter_name"] for parameter in calls["/outpaint"]["parameters"]]
    assert names == ["image", "left", "right", "top", "bottom", "label_class", "label_style", *VALUES]
    names = [parameter["parameter_name"] for parameter in calls["/vary"]["parameters"]]
    assert names == ["image", "mask", "strength", "label_class", "label_style", *VALUES]


def test_generate_answers_with_as_many_pictures_as_asked_and_the_seed(client, pipeline):
    pictures, seed = client.predict(label_class="cat", images=3, seed=7, random_seed=False, api_name="/generate")
    assert seed == 7
    assert [picture["caption"] for picture in pictures] == ["seed 7", "seed 8", "seed 9"]
    expected = pipeline.generate({"class": "cat"}, seeds=7, count=3)
    for picture, image in zip(pictures, expected.images, strict=True):
        assert np.array_equal(np.asarray(load_image(picture["image"])), np.asarray(image))


def test_a_downloaded_picture_holds_the_recipe_that_draws_it_again(client, pipeline):
    pictures, _ = client.predict(
        label_class="bug", label_style="round", images=2, seed=2**32 - 1, random_seed=False, steps=3, order="random",
        guidance=2.5, schedule="arccos", api_name="/generate",
    )  # fmt: skip
    recipe = read_recipe(pictures[1]["image"])
    assert recipe is not None
    assert (recipe["task"], recipe["label"], recipe["seed"]) == ("generate", {"class": "bug", "style": "round"}, 0)
    again = pipeline.generate(recipe["label"], seeds=recipe["seed"], sampler=runs.Sampler(**recipe["sampler"]))
    assert np.array_equal(np.asarray(load_image(pictures[1]["image"])), np.asarray(again.images[0]))
    assert Path(pictures[1]["image"]).name == "tiny-0.png"


def test_a_random_seed_is_told_and_draws_the_same_again(client):
    (first,), seed = client.predict(images=1, random_seed=True, api_name="/generate")
    (second,), _ = client.predict(images=1, seed=seed, random_seed=False, api_name="/generate")
    assert Path(first["image"]).read_bytes() == Path(second["image"]).read_bytes()


def test_a_seed_that_is_given_is_used_and_one_that_is_left_out_is_random(client):
    """The page's checkbox was on for programs too, so that `seed=7` drew anything."""
    (first,), seed = client.predict(images=1, seed=7, api_name="/generate")
    (again,), _ = client.predict(images=1, seed=7, random_seed=False, api_name="/generate")
    assert seed == 7 and Path(first["image"]).read_bytes() == Path(again["image"]).read_bytes()
    seeds = {client.predict(images=1, steps=1, api_name="/generate")[1] for _ in range(2)}
    assert len(seeds) == 2  # the same by chance once in four milliards


def test_inpaint_answers_with_pictures_of_the_same_size_and_keeps_the_rest(client, tmp_path):
    image, mask = picture(tmp_path / "in.png", (90, 60)), square_mask(tmp_path / "mask.png", (90, 60))
    pictures, seed = client.predict(
        image=handle_file(image), mask=handle_file(mask), grow=0, images=2, seed=5, random_seed=False,
        api_name="/inpaint",
    )  # fmt: skip
    assert seed == 5 and len(pictures) == 2
    before, after = np.asarray(load_image(image)), np.asarray(load_image(pictures[0]["image"]))
    assert after.shape == before.shape
    assert np.array_equal(after[:, 60:], before[:, 60:])
    assert not np.array_equal(after, before)
    recipe = read_recipe(pictures[1]["image"])
    assert recipe is not None and (recipe["task"], recipe["seed"]) == ("inpaint", 6)
    assert 0 < recipe["tokens_redrawn"] < 16


def test_outpaint_answers_with_a_larger_picture_that_holds_its_own(client, pipeline, tmp_path):
    path = picture(tmp_path / "in.png", (32, 32))
    options = {"left": 1, "right": 2, "top": 0, "bottom": 0}
    (answer,), _ = client.predict(
        image=handle_file(path), **options, images=1, seed=3, random_seed=False, label_class="cat", api_name="/outpaint"
    )
    expected = pipeline.outpaint(path, (1, 0, 2, 0), {"class": "cat"}, seeds=3)
    assert Path(answer["image"]).read_bytes() == expected.save(tmp_path)[0].read_bytes()
    (again,), _ = client.predict(
        image=handle_file(answer["image"]), **options, images=1, seed=3, random_seed=False, api_name="/outpaint"
    )
    assert load_image(again["image"]).size == (56 + 24, 32)  # at the same scale


def test_vary_answers_with_variations_of_the_whole_or_of_a_part(client, pipeline, tmp_path):
    path, mask = picture(tmp_path / "in.png", (32, 32)), square_mask(tmp_path / "mask.png", (32, 32))
    options = {"image": handle_file(path), "strength": 0.4, "images": 2, "seed": 3, "random_seed": False}
    for given in (None, mask):
        file = handle_file(given) if given else None
        answers, _ = client.predict(**options, mask=file, api_name="/vary")
        expected = pipeline.vary(path, 0.4, mask=given, seeds=3, count=2).save(tmp_path / "library")
        assert [Path(each["image"]).read_bytes() for each in answers] == [each.read_bytes() for each in expected]


@pytest.mark.parametrize("task", ["generate", "inpaint", "outpaint", "vary"])
def test_the_page_the_command_and_the_library_write_the_same_file(client, pipeline, task, tmp_path):
    """The library is the command, see tests/cli/test_cli.py; here the page's call is the library, byte for byte."""
    path, mask = picture(tmp_path / "in.png", (40, 32)), square_mask(tmp_path / "mask.png", (40, 32))
    options = {"images": 1, "seed": 11, "random_seed": False, "label_class": "bug", "steps": 3, "order": "confidence"}
    drawn = {"label": {"class": "bug"}, "seeds": 11}
    drawn["sampler"] = dataclasses.replace(pipeline.recipe, steps=3, order="confidence")
    if task == "generate":
        expected = pipeline.generate(**drawn)
    elif task == "inpaint":
        options |= {"image": handle_file(path), "mask": handle_file(mask), "grow": 1, "sight": "half of it at a time"}
        expected = pipeline.inpaint(path, mask, window=20, **drawn)
    elif task == "outpaint":
        options |= {"image": handle_file(path), "left": 0, "right": 0, "top": 2, "bottom": 1}
        expected = pipeline.outpaint(path, (0, 2, 0, 1), **drawn)
    else:
        options |= {"image": handle_file(path), "mask": None, "strength": 0.7}
        expected = pipeline.vary(path, 0.7, **drawn)
    (answer,), _ = client.predict(**options, api_name=f"/{task}")
    assert Path(answer["image"]).read_bytes() == expected.save(tmp_path / "library")[0].read_bytes()


def test_a_recipe_can_be_read_from_a_picture_and_the_model_says_what_it_can_do(client, tmp_path):
    (drawn,), _ = client.predict(images=1, seed=5, random_seed=False, api_name="/generate")
    assert client.predict(image=handle_file(drawn["image"]), api_name="/read_recipe")["seed"] == 5
    assert "labels: class" in client.predict(api_name="/model_info")
    with pytest.raises(AppError, match="This picture holds no recipe of maskimg"):
        client.predict(image=handle_file(picture(tmp_path / "in.png", (16, 16))), api_name="/read_recipe")


@pytest.mark.parametrize("language", ["python", "bash", "javascript"])
def test_the_examples_for_programs_run(address, language, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "page.md").read_text(encoding="utf-8")
    text = text.replace("http://127.0.0.1:7860/", address).replace("http://127.0.0.1:7860", address)
    code = next(block for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M) if address in block)
    if language == "python":
        names: dict = {}
        exec(compile(code, "page.md", "exec"), names)
        assert len(names["pictures"]) == 2 and load_image(names["wider"][0]["image"]).size == (24, 16)
        names["client"].close()
        return
    program = {"bash": ["bash", "-c"], "javascript": ["node", "--input-type=module", "-e"]}[language]
    needed = "curl" if language == "bash" else "node"
    if not shutil.which(needed):
        pytest.skip(f"no {needed} on PATH")
    done = subprocess.run([*program, code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.search(r"gradio_api/file=[^\" ]+\.png", done.stdout)
    assert found and read_recipe(io.BytesIO(httpx.get(address + found[0]).content))["label"] == {"class": "bird"}


def test_reconstruct_answers_with_both_pictures_and_how_close_they_are(client, pipeline, tmp_path):
    path = picture(tmp_path / "in.png", (32, 16))
    before, after, words = client.predict(image=handle_file(path), api_name="/reconstruct")
    assert load_image(before).size == load_image(after).size == (16, 8)
    expected = pipeline.reconstruct(path)
    assert np.array_equal(np.asarray(load_image(after)), np.asarray(expected.image))
    assert words == (
        f"PSNR {expected.psnr_db:.1f} dB · SSIM {expected.ssim:.3f} · 16 tokens, {expected.distinct} of 64 codes in use"
    )
    _, whole, words = client.predict(image=handle_file(path), size="up to 256", api_name="/reconstruct")
    assert load_image(whole).size == (32, 16)
    assert "32 tokens" in words


def test_reconstruct_takes_pictures_that_are_turned_transparent_or_thin(client, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 8
    load_image(picture(tmp_path / "a.png", (32, 16))).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (30, 2), (255, 0, 0, 40)).save(tmp_path / "thin.png")
    for name, size in (("turned.jpg", (8, 16)), ("thin.png", (16, 1))):
        before, after, _ = client.predict(image=handle_file(tmp_path / name), api_name="/reconstruct")
        assert load_image(before).size == load_image(after).size == size


# ----------------------------------------------------------------------------- what is refused, and in which words


@pytest.mark.parametrize(
    "values, words",
    [
        ({"steps": 2.5}, "Steps must be a whole number between 1 and 1024, got 2.5."),
        ({"images": 17}, "Images must be between 1 and 16, got 17."),
        ({"images": 1.5}, "Images must be a whole number between 1 and 16, got 1.5."),
        ({"order": "astrology"}, "Order must be one of confidence, halton, random, critic, moment, got `astrology`."),
        ({"label_class": "dragon"}, "Label class must be one of"),
        ({"seed": 2**40}, "Seed must be between 0 and 4294967295, got 1099511627776."),
        ({"seed": 1.5}, "Seed must be a whole number between 0 and 4294967295, got 1.5."),
        ({"seed": 7, "random_seed": True}, "Seed is given, and random_seed asks for another one"),
        ({"guidance": "much"}, "Guidance must be a number between 0 and 20, got `much`."),
    ],
)
def test_values_out_of_range_are_refused_in_words(client, values, words):
    with pytest.raises(AppError) as caught:
        client.predict(**values, api_name="/generate")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"steps": float("nan")}, "steps must be a whole number between 1 and 1024, got nan"),
        ({"guidance": float("inf")}, "guidance must be a number, got inf"),
        ({"guidance": 21}, "guidance must be between 0 and 20, got 21"),
        ({"seed": -1}, "seed must be between 0 and 4294967295, got -1"),
        ({"seed": None}, "seed must be a whole number between 0 and 4294967295, got `None`"),
        ({"steps": True}, "steps must be a whole number between 1 and 1024, got `True`"),
        ({"schedule": "sudden"}, "schedule must be one of"),
    ],
)
def test_every_number_is_checked_on_the_server(pipeline, values, words):
    # A slider's own limits hold for the page, but its step does not, and another client may send anything.
    with pytest.raises(ValueError, match=words):
        runs.read_request(pipeline, VALUES | values)


def test_a_broken_picture_is_refused_in_a_sentence_without_a_path(client, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(tmp_path / "in.png", (64, 64)).read_bytes()[:200])
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for path, words in ((cut, "The picture is damaged or cut off"), (text, "The picture is not a readable PNG")):
        with pytest.raises(AppError) as caught:
            client.predict(image=handle_file(path), api_name="/reconstruct")
        assert words in str(caught.value)
        assert str(tmp_path) not in str(caught.value) and "gradio" not in str(caught.value)


def test_masks_that_do_not_fit_are_refused_in_a_sentence(client, tmp_path):
    image = handle_file(picture(tmp_path / "in.png", (64, 64)))
    empty = tmp_path / "empty.png"
    Image.new("L", (64, 64)).save(empty)
    cases = (
        (empty, "Nothing is painted: paint the part to redraw."),
        (square_mask(tmp_path / "other.png", (32, 32)), "The mask is 32x32 but the image is 64x64"),
    )
    for mask, words in cases:
        with pytest.raises(AppError) as caught:
            client.predict(image=image, mask=handle_file(mask), api_name="/inpaint")
        assert words in str(caught.value)


def test_a_missing_picture_is_asked_for(client, tmp_path):
    with pytest.raises(AppError, match="There is no picture: choose a file first"):
        client.predict(image=None, api_name="/reconstruct")
    with pytest.raises(AppError, match="There is no mask: choose a file first"):
        image = handle_file(picture(tmp_path / "in.png", (16, 16)))
        client.predict(image=image, mask=None, api_name="/inpaint")


def test_a_size_that_is_not_offered_is_refused(pipeline, tmp_path):
    path = str(picture(tmp_path / "in.png", (16, 16)))
    with pytest.raises(ValueError, match="size must be one of the model's, up to 256, up to 512, got `vast`"):
        runs.reconstruct(pipeline, path, "vast")


@pytest.mark.parametrize("full", [OSError(errno.EDQUOT, "Disk quota exceeded"), RuntimeError("I/O (os error 28)")])
def test_a_full_disk_of_the_server_is_named_on_the_page(full):
    from maskimg_apps.demo.serving.errors import kindly

    with pytest.raises(gr.Error, match="The server's disk is full: free some space, then try again"), kindly():
        raise OSError("cannot save") from full


def test_an_unexpected_fault_tells_a_number_and_the_log_tells_the_rest(caplog):
    from maskimg_apps.demo.serving.errors import kindly

    with pytest.raises(gr.Error) as caught, kindly():
        raise KeyError("secret")
    assert "secret" not in caught.value.message
    assert caught.value.message.startswith("Something went wrong (id ")
    assert "secret" in caplog.text


def test_an_error_cannot_carry_markup():
    from maskimg_apps.demo.serving.errors import kindly

    with pytest.raises(gr.Error) as caught, kindly():
        raise ValueError("there is no class `<img src=x onerror=alert(1)>`")
    assert "<" not in caught.value.message


# ----------------------------------------------------------------------------- drawing step by step


def test_every_step_shows_fewer_hatched_tokens_until_the_pictures_are_there(pipeline):
    order = runs.read_request(pipeline, VALUES | {"images": 2, "label_class": "cat"})
    moments = list(drawing.draw(pipeline, order, share=math.inf))
    assert [moment.pictures is not None for moment in moments] == [False] * 4 + [True]
    assert "starting" in moments[0].status
    assert [f"step {step}/4" in moments[step].status for step in range(1, 4)] == [True] * 3
    panels = [moment.panel or "" for moment in moments]
    assert all('class="mk-panel mk-live"' in panel for panel in panels[:-1])
    assert [panel.count("mk-veil") for panel in panels] == [2, 2, 2, 2, 0]
    fixed = [int(re.findall(r"(\d+) of 16 tokens fixed", panel)[0]) for panel in panels[1:]]
    assert fixed == sorted(set(fixed)) and fixed[-1] == 16
    assert panels[-1].count("<figure>") == 1 and 'max="3" value="3"' in panels[-1]  # the replay


def test_previews_take_a_small_share_of_the_time_however_dear_they_are(pipeline, monkeypatch):
    """In a clock of its own: a step takes a second, a preview 0.02, 0.5 or 10, the page's way of a panel included."""
    clock = [0.0]
    monkeypatch.setattr(drawing.time, "perf_counter", lambda: clock[0])
    steps = pipeline.steps

    def slow(*arguments, **options):
        for preview in steps(*arguments, **options):
            clock[0] += 1.0
            yield preview

    monkeypatch.setattr(pipeline, "steps", slow)
    order = runs.read_request(pipeline, VALUES | {"images": 1, "steps": 16, "order": "random"})
    shown = {}
    for cost in (0.02, 0.5, 10.0):
        clock[0], taken = 0.0, 0
        for moment in drawing.draw(pipeline, order):
            if moment.panel and moment.pictures is None and "starting" not in moment.status:
                clock[0], taken = clock[0] + cost, taken + 1
        shown[cost] = taken
        assert taken == 1 or taken * cost <= drawing.SHARE * clock[0]
    assert shown == {0.02: 15, 0.5: 1, 10.0: 1}  # the first is free; the last step shows the pictures themselves


def test_a_status_goes_on_where_there_is_no_time_for_panels(pipeline, monkeypatch):
    monkeypatch.setattr(drawing, "EVERY", -1.0)
    monkeypatch.setattr(drawing.Purse, "allows", lambda purse: False)
    moments = list(drawing.draw(pipeline, runs.read_request(pipeline, VALUES)))
    assert [moment.panel is None for moment in moments] == [False, True, True, True, True, False]
    assert [f"step {step}/4" in moments[step].status for step in range(1, 5)] == [True] * 4


def test_programs_that_call_are_not_made_to_wait_for_previews(pipeline, monkeypatch, tmp_path):
    decoded = []
    monkeypatch.setattr(pipeline, "decode", lambda codes: decoded.append(1) or Pipeline.decode(pipeline, codes))
    gallery = gr.Gallery()
    gallery.GRADIO_CACHE = str(tmp_path)
    paths, seed = running.run_once(pipeline, runs.read_request(pipeline, VALUES), None, gallery)
    assert len(paths) == VALUES["images"] and seed == 7
    assert decoded == [1]


def test_a_replay_can_show_what_the_network_and_the_critic_believe(pipeline):
    order = runs.read_request(pipeline, VALUES | {"images": 2, "label_class": "cat", "order": "halton"})
    *moments, last = drawing.draw(pipeline, order, share=math.inf)
    assert all("mk-heat" not in (moment.panel or "") for moment in moments)
    frames = replay.frames(pipeline, last.reel)
    # Also of tokens that are still masked, whose codes the run itself never drew.
    assert all(np.isfinite(frame.confidence).all() and np.isfinite(frame.critic).all() for frame in frames)
    assert [frame.masked.any() for frame in frames] == [True, True, True, False]
    belief = (-pipeline.doubts(order, last.reel.states[-1].part)).sigmoid()[0]
    assert np.allclose(frames[-1].critic, belief)
    assert replay.show_frames(frames).count("mk-critic") == 4
    *moments, _ = drawing.draw(pipeline, order, view="Critic", share=math.inf)
    assert (moments[-1].panel.count("mk-critic"), moments[-1].panel.count("mk-confidence")) == (2, 0)
    *moments, _ = drawing.draw(pipeline, order, view="Confidence", share=math.inf)
    assert (moments[-1].panel.count("mk-critic"), moments[-1].panel.count("mk-confidence")) == (0, 2)
    *_, last = drawing.draw(pipeline, dataclasses.replace(order, sampler=pipeline.presets["best"]))
    assert all(frame.critic is not None for frame in replay.frames(pipeline, last.reel))


def test_under_the_hatching_lies_the_nearest_code(pipeline):
    mask = pipeline.generator.mask_id
    part = torch.tensor([[[5, mask, mask], [mask, mask, 9]], [[mask] * 3, [mask] * 3]])
    filled = board.nearest(pipeline, part)
    assert filled[0].tolist() == [[5, 5, 9], [5, 9, 9]]
    assert filled[1].tolist() == [[0] * 3] * 2  # nothing is drawn there yet, and nothing is seen of it


def test_scores_have_six_colours_and_what_is_still_masked_is_smaller():
    scores = np.array([[0.0, 0.5, 1.0], [np.nan, 0.99, 0.3]])
    shown = tokens.tile(None, (0, 0, 3, 2), veiled=np.array([[1, 0, 0], [0, 0, 0]], bool), confidence=scores)
    assert '<path class="mk-r0" d="M0.3 0.3h.4v.4h-.4Z"/>' in shown
    assert '<path class="mk-r3" d="M1 0H2V1H1Z"/>' in shown
    assert '<path class="mk-r5" d="M2 0H3V1H2ZM1 1H2V2H1Z"/>' in shown


@pytest.mark.parametrize("kind", ["generate", "outpaint", "best of"])
def test_an_animation_shows_every_step_of_the_first_picture(pipeline, kind):
    best_of = 3 if kind == "best of" else 1
    order = runs.read_request(pipeline, VALUES | {"images": 2, "best_of": best_of})
    edit = edits.outpainting(pipeline, Image.new("RGB", (32, 32), "red"), (2, 0, 0, 0)) if kind == "outpaint" else None
    *_, last = drawing.draw(pipeline, order, edit)
    frames = replay.frames(pipeline, last.reel, scored=False)
    assert len(frames) == 4 * (len(edit.places) if edit else 1)
    left = [int(frame.masked.sum()) for frame in frames]
    assert left == sorted(set(left), reverse=True) and left[-1] == 0
    assert all((frame.fresh == (before.masked & ~frame.masked)).all() for before, frame in itertools.pairwise(frames))
    film = Image.open(io.BytesIO(replay.animate(frames)))
    assert film.format == "WEBP" and film.n_frames == len(frames) and min(film.size) >= 256
    assert last.pictures is not None
    shown = tokens.data_uri(last.pictures[0])
    assert shown in (last.panel or "")
    if kind != "outpaint":  # there the original's own pixels lie over what the tokenizer made of them
        assert shown in replay.show_frames(frames[-1:])


def test_a_replay_can_be_asked_for_again_and_keeps_no_large_picture(pipeline):
    order = runs.read_request(pipeline, VALUES)
    photo = Image.effect_noise((1000, 1000), 50).convert("RGB")
    *_, last = drawing.draw(pipeline, order, edits.outpainting(pipeline, photo, (2, 1, 0, 0)))
    once, again = (replay.frames(pipeline, last.reel, scored=False) for _ in range(2))
    assert len({frame.picture.tobytes() for frame in once}) > 1
    assert [frame.picture.tobytes() for frame in once] == [frame.picture.tobytes() for frame in again]
    assert len(pickle.dumps(last.reel)) < 100_000  # the photo is 3 MB


def test_a_long_run_is_replayed_in_few_frames(pipeline):
    """And each place has some, also one with fewer tokens than steps, which ends early."""
    order = runs.read_request(pipeline, VALUES | {"steps": 16})
    edit = edits.outpainting(pipeline, Image.new("RGB", (96, 32)), (0, 2, 0, 2))
    assert len(edit.places) > 4
    *_, last = drawing.draw(pipeline, order, edit)
    frames = replay.frames(pipeline, last.reel, scored=False)
    assert len(frames) == replay.MAX_FRAMES and not frames[-1].masked.any()
    assert {state.place for state in last.reel.states if not state.chosen} == set(range(len(edit.places)))


@pytest.mark.parametrize("order", ["confidence", "halton", "random", "critic", "moment"])
def test_the_demo_draws_what_the_pipeline_draws(pipeline, order):
    asked = runs.read_request(pipeline, VALUES | {"order": order, "images": 2, "guidance": 2.0, "label_class": "cat"})
    *_, last = drawing.draw(pipeline, asked)
    expected = pipeline.generate({"class": "cat"}, seeds=7, count=2, sampler=asked.sampler)
    assert [image.tobytes() for image in last.pictures or []] == [image.tobytes() for image in expected.images]


def test_best_of_shows_the_candidate_that_the_pipeline_chooses(pipeline, monkeypatch):
    monkeypatch.setattr(drawing, "EVERY", 0.0)  # a status line at every step
    asked = runs.read_request(pipeline, VALUES | {"images": 2, "best_of": 3, "label_class": "cat"})
    *running, last = drawing.draw(pipeline, asked)
    expected = pipeline.generate({"class": "cat"}, seeds=7, count=2, sampler=asked.sampler, best_of=3)
    assert [image.tobytes() for image in last.pictures or []] == [image.tobytes() for image in expected.images]
    assert "candidate 3/3" in running[-1].status


def test_best_of_needs_a_critic():
    with pytest.raises(ValueError, match="best of needs a critic"):
        runs.read_request(tiny_pipeline(labels=False, critic=False), VALUES | {"best_of": 2})


def test_a_quality_is_the_models_preset_whatever_the_sliders_say(pipeline):
    assert runs.read_request(pipeline, VALUES | {"preset": "fast"}).sampler == pipeline.presets["fast"]
    with pytest.raises(ValueError, match="there is no preset `superb`: choose fast, balanced, best"):
        runs.read_request(pipeline, VALUES | {"preset": "superb"})


def test_a_list_over_the_steps_stays_one_until_its_slider_is_moved():
    pipeline = tiny_pipeline()
    pipeline.recipe = dataclasses.replace(pipeline.recipe, guidance=(1.0, 2.0, 3.0), counts=(1, 2, 6, 7))
    shown = VALUES | {"guidance": 2.0}
    assert runs.read_request(pipeline, shown).sampler.guidance == (1.0, 2.0, 3.0)
    assert runs.read_request(pipeline, shown).sampler.counts == (1, 2, 6, 7)
    moved = runs.read_request(pipeline, shown | {"guidance": 2.5, "steps": 5}).sampler
    assert (moved.guidance, moved.steps, moved.counts) == (2.5, 5, ())


def test_inpainting_in_the_demo_is_inpainting_in_the_pipeline(pipeline, tmp_path):
    image, mask = load_image(picture(tmp_path / "in.png", (50, 40))), np.zeros((40, 50), bool)
    mask[5:12, 5:12] = True
    canvas, painted = runs.read_canvas(Drawing(image, mask), None)
    options = runs.hole_options(canvas, 0, "any pixel", "the whole picture")
    asked = runs.read_request(pipeline, VALUES)
    *_, last = drawing.draw(pipeline, asked, edits.inpainting(pipeline, canvas, painted, **options))
    expected = pipeline.inpaint(image, mask, seeds=7, sampler=asked.sampler, grow=0)
    assert [each.tobytes() for each in last.pictures or []] == [each.tobytes() for each in expected.images]


def test_a_model_without_labels_and_critic_has_a_page_too():
    bare = tiny_pipeline(labels=False, critic=False)
    page = app.build(bare)
    choices = [block.choices for block in page.blocks.values() if getattr(block, "label", None) == "Order"]
    assert choices == [[(order, order) for order in ("confidence", "halton", "random", "moment")]] * 4
    views = [block.choices for block in page.blocks.values() if "mk-view" in (block.elem_classes or [])]
    assert views == [[("Tokens", "Tokens"), ("Confidence", "Confidence")]] * 4
    *_, last = drawing.draw(bare, runs.read_request(bare, VALUES))
    assert last.pictures and last.pictures[0].size == (16, 16)


# ----------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("task", ["generate", "inpaint", "outpaint", "vary"])
def test_a_recipe_sets_the_controls_that_draw_the_same_again(pipeline, task, tmp_path):
    path, mask = picture(tmp_path / "in.png", (32, 32)), square_mask(tmp_path / "mask.png", (32, 32))
    # What no slider can show: lists over the steps, and numbers that have no slider.
    sampler = runs.Sampler(steps=5, order="critic", guidance=(1.0, 3.0), top_k=9, counts=(1, 2, 3, 4, 6))
    options = {"label": {"class": "cat"}, "seeds": 8, "sampler": sampler, "best_of": 2}
    results = {
        "generate": lambda: pipeline.generate(**options),
        "inpaint": lambda: pipeline.inpaint(path, mask, grow=2, coverage=0.1, **options),
        "outpaint": lambda: pipeline.outpaint(path, (1, 0, 2, 1), **options),
        "vary": lambda: pipeline.vary(path, 0.35, **options),
    }
    recipe = read_recipe(results[task]().save(tmp_path)[0])
    found, values, notes = runs.read_settings(pipeline, recipe)
    assert found == task and notes == []
    order = runs.read_request(pipeline, VALUES | values)
    assert (order.sampler, order.seeds, order.best_of) == (sampler, (8,), 2)
    assert order.label == {"class": "cat"}
    if task == "inpaint":
        assert (values["grow"], values["coverage"]) == (2, "10 %")
    if task == "outpaint":
        assert runs.read_margins(values, pipeline) == (1, 0, 2, 1)
    if task == "vary":
        assert values["strength"] == 0.35


def test_a_recipe_that_went_through_a_browser_draws_the_same_bytes(pipeline):
    """A browser writes 1 for 1.0, and the recipe in the PNG was another one."""
    recipe = pipeline.recipe_for(
        Request({"class": "cat"}, sampler=runs.Sampler(guidance=(1.0, 2.5, 3.0), token_temperature=2.0)), 3
    )
    kept = json.loads(json.dumps(recipe).replace(".0,", ",").replace(".0]", "]"))
    assert json.dumps(kept) != json.dumps(recipe)
    order = runs.read_request(pipeline, VALUES | runs.read_settings(pipeline, kept)[1])
    assert json.dumps(pipeline.recipe_for(order, order.seeds[0])) == json.dumps(recipe)


def test_a_recipe_of_another_model_is_used_with_a_warning(pipeline):
    recipe = pipeline.recipe_for({"class": "cat"}, 3) | {"model": "other", "dtype": "bfloat16", "compiled": True}
    recipe["label"] = {"class": "dragon", "era": "baroque"}
    _, values, notes = runs.read_settings(pipeline, recipe)
    assert values["label_class"] == ""
    assert notes == [
        "this model has no class `dragon`",
        "this model has no labels of the kind `era`",
        "it was drawn by the model `other`, and this is another one",
        "it was drawn in bfloat16: a few tokens may differ",
        "it was drawn by a compiled network, which rounds otherwise: in bf16 another picture will come",
    ]
    assert "this is another one" in about.show_recipe(pipeline, recipe)


@pytest.mark.parametrize(
    "recipe",
    [None, [], "x", {}, {"sampler": {"steps": 3}}, {"sampler": {"speed": 3}, "task": "generate", "seed": 1}]
    + [{"sampler": {}, "task": "generate", "seed": seed, "label": {}} for seed in (None, -1, 2**32, "1", 1.5)]
    + [{"sampler": {"steps": "many"}, "task": "generate", "seed": 1, "label": {}}]
    + [{"sampler": {}, "task": "generate", "seed": 1, "label": []}]
    + [{"sampler": {}, "task": "outpaint", "seed": 1, "label": {}, "margins": 4}]
    + [{"sampler": {}, "task": "inpaint", "seed": 1, "label": {}, "grow": 1, "coverage": 0.33}],
)
def test_a_recipe_that_is_none_is_refused_in_words(pipeline, recipe):
    """It comes from a file or from a browser: anyone may have written it."""
    with pytest.raises(ValueError, match="^this recipe cannot be used here"):
        runs.read_settings(pipeline, recipe)


def test_what_a_recipe_says_is_shown_as_text(pipeline):
    recipe = pipeline.recipe_for({"class": "cat"}, 3) | {"model": "<script>", "note": "x" * 5000}
    shown = about.show_recipe(pipeline, recipe)
    assert "<script>" not in shown and "&lt;script&gt;" in shown and len(shown) < 6000


# ----------------------------------------------------------------------------- what is to be redrawn


def test_paint_and_mask_file_are_redrawn_together(pipeline, tmp_path):
    image, painted = Image.new("RGB", (16, 16), "white"), np.zeros((16, 16), bool)
    painted[0, 0] = True
    white = Image.new("L", (16, 16))
    white.putpixel((15, 15), 255)
    white.save(tmp_path / "mask.png")
    canvas, mask = runs.read_canvas(Drawing(image, painted), str(tmp_path / "mask.png"))
    hole = pipeline.hole(canvas, mask, **runs.hole_options(canvas, 0, "any pixel", "the whole picture"))
    assert np.argwhere(hole.tokens[0].numpy()).tolist() == [[0, 0], [3, 3]]
    assert "2 of 16 tokens (12 %) will be redrawn" in runs.show_hole(pipeline, hole)


def test_what_cannot_be_redrawn_is_said_in_words(tmp_path):
    image, nothing = Image.new("RGB", (16, 16)), np.zeros((16, 16), bool)
    other = square_mask(tmp_path / "mask.png", (8, 8))
    cases = (
        (Drawing(None, None), None, runs.NOT_OPEN),
        (Drawing(image, nothing), None, "nothing is painted: paint the part to redraw"),
        (Drawing(image, None), None, "nothing is painted"),
        (Drawing(image, nothing), str(other), "the mask is 8x8 but the image is 16x16"),
    )
    for drawn, mask_file, words in cases:
        with pytest.raises(ValueError, match=words):
            runs.read_canvas(drawn, mask_file)
    options = (
        (1.5, "any pixel", "the whole picture", "grow must be a whole number"),
        (1, "most", "the whole picture", "redraw a token when must be one of any pixel"),
        (1, "any pixel", "nothing", "the model sees must be one of the whole picture"),
    )
    for *values, words in options:
        with pytest.raises(ValueError, match=words):
            runs.hole_options(image, *values)
    assert runs.hole_options(Image.new("RGB", (90, 40)), 1, "10 %", "a quarter at a time") == {
        "grow": 1, "coverage": 0.1, "window": 23,
    }  # fmt: skip


def test_the_canvas_is_read_through_the_guarded_door():
    editor = guard_editor(gr.ImageEditor())
    blobs = editor.blob_storage
    layers = [Image.new("RGBA", (20, 10)) for _ in range(2)]
    layers[0].putpixel((3, 4), (255, 0, 0, 255))
    layers[1].putpixel((5, 6), (255, 255, 255, 9))
    blobs["a"] = canvas(Image.new("RGB", (20, 10), "red"), layers)
    for _ in range(2):  # one stroke starts several events, which all read it
        drawing = editor.preprocess(gr.components.image_editor.EditorData(id="a"))
        assert drawing.picture.size == (20, 10)
        assert np.argwhere(drawing.painted).tolist() == [[4, 3], [6, 5]]
    assert editor.preprocess(gr.components.image_editor.EditorData(id="gone")) == Drawing(None, None)
    assert editor.preprocess(None) == Drawing(None, None)

    blobs["bad"] = canvas(Image.new("RGB", (20, 10)), layers)
    blobs["bad"].background = b"GIF89a"
    with pytest.raises(gr.Error, match="The picture is not a readable PNG, JPEG, WebP"):
        editor.preprocess(gr.components.image_editor.EditorData(id="bad"))


def test_the_server_keeps_only_the_newest_canvases():
    blobs = RecentBlobs()
    for i in range(3 * MAX_BLOBS):
        blobs[str(i)] = i
    assert list(blobs.values()) == list(range(2 * MAX_BLOBS, 3 * MAX_BLOBS))


def test_the_parts_of_a_canvas_may_come_at_the_same_time():
    # Gradio's accept_blobs looks up, adds and puts back in several threads: two that found nothing lost each other.
    blobs = RecentBlobs()
    first, second = blobs.get("a", {}), blobs.get("a", {})
    first["background"], second["layer"] = 1, 2
    blobs["a"] = second
    blobs["a"] = first
    assert blobs.get("a") == {"background": 1, "layer": 2}
    assert blobs.get("b") is None and "b" not in blobs


def test_a_brush_is_as_wide_as_an_eighth_of_the_picture():
    assert [runs.brush_radius(Drawing(Image.new("RGB", size), None)) for size in ((64, 64), (800, 400))] == [4, 25]
    assert runs.brush_radius(Drawing(Image.new("RGB", (1, 1)), None)) == 1
    assert runs.brush_radius(Drawing(None, None)) == 0


def test_an_upload_is_called_what_it_is(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ImageError, match="^the mask is not a readable"):
        open_mask(str(tmp_path / "x.png"))
    with pytest.raises(ImageError, match="^the picture is no longer on the server"):
        open_upload(str(tmp_path / "gone.png"))


def test_tokens_are_drawn_where_they_are():
    cells = np.array([[1, 1, 0], [0, 1, 0]], bool)
    drawn = tokens.tile(None, (0, 0, 3, 2), veiled=cells, fresh=cells, caption="<b>")
    assert 'd="M0 0H2V1H0ZM1 1H2V2H1Z"' in drawn  # neighbours as one
    assert "M0 0h1v1h-1ZM1 0h1v1h-1ZM1 1h1v1h-1Z" in drawn
    assert "&lt;b&gt;" in drawn and "<b>" not in drawn
    edge = tokens.hole_tile(None, (0, 0, 3, 2), cells).split('mk-edge" d="')[1].split('"')[0]
    assert edge.count("h1") + edge.count("v1") == 8
    assert tokens.data_uri(Image.new("RGB", (1000, 10))).startswith("data:image/jpeg")


# ----------------------------------------------------------------------------- who may reach it


def test_without_a_model_the_page_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = app.build(None)
    buttons = [block for block in page.blocks.values() if isinstance(block, gr.Button)]
    assert buttons and not any(button.interactive for button in buttons)
    address = app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0)))
    try:
        told = str(httpx.get(address + "config").json()["components"])
        assert "maskimg train FOLDER --out DIR" in told and "maskimg demo --model DIR" in told
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--host", "0.0.0.0"], "others could reach this page: give --user NAME and --password-file FILE"),
        (["--host", "::"], "others could reach this page"),
        (["--host", "example.org"], "others could reach this page"),
        (["--share"], "others could reach this page"),
        (["--user", "ann"], "a login needs both --user and --password-file"),
        (["--password-file", "x"], "a login needs both"),
        (["--user", "ann", "--password-file", "/nowhere/x"], "`/nowhere/x` cannot be read"),
    ],
)
def test_a_page_that_others_could_reach_needs_a_name_and_a_password(options, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", *options])
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_an_empty_password_is_refused(tmp_path):
    (tmp_path / "password").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        app.read_login("ann", str(tmp_path / "password"))


def test_a_page_with_a_login_answers_nobody_else(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = app.build(pipeline)
    address = app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0), login=("ann", "secret")))
    try:
        for path in ("config", "gradio_api/info", "gradio_api/file=/etc/hostname"):
            assert httpx.get(address + path).status_code == 401
        client = Client(address, auth=("ann", "secret"), verbose=False, download_files=tmp_path)
        assert len(client.predict(images=1, api_name="/generate")[0]) == 1
        client.close()
    finally:
        page.close(verbose=False)


def test_files_of_the_server_and_its_statistics_are_not_served(address):
    assert httpx.get(f"{address}gradio_api/file={Path(__file__).resolve()}").status_code == 403
    assert httpx.get(f"{address}gradio_api/file=/etc/hostname").status_code == 403
    assert httpx.get(f"{address}monitoring").status_code in (403, 404)


def test_a_file_that_is_too_large_is_not_accepted(address):
    file = io.BytesIO(bytes(17 * 2**20))
    assert httpx.post(f"{address}gradio_api/upload", files={"files": ("big.png", file)}).status_code == 413


def test_a_port_that_is_taken_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.free_port("127.0.0.1", port) > port
    with pytest.raises(ValueError, match="port must be between 0 and 65535, got 70000"):
        app.free_port("127.0.0.1", 70000)
    with pytest.raises(ValueError, match="cannot listen on 203.0.113.7"):
        app.free_port("203.0.113.7", 7860)


def test_serving_forgets_settings_of_gradio_and_leaves_no_uploads_behind(monkeypatch, capsys):
    for name in list(os.environ):
        if name.startswith("GRADIO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/tmp/elsewhere")
    monkeypatch.setattr("maskimg_apps.demo.serving.models.bundled_models", lambda: [])
    seen = {}

    def stay(page: gr.Blocks) -> None:
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        seen["mode"] = stat.S_IMODE(uploads.stat().st_mode)
        seen["uploads"], seen["allowed"] = uploads, page.allowed_paths
        page.close(verbose=False)

    monkeypatch.setattr(app, "stay", stay)
    app.serve(None, app.Address(port=app.free_port("127.0.0.1", 0)))
    assert seen["mode"] == 0o700 and seen["allowed"] == [] and not seen["uploads"].exists()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    told = capsys.readouterr().out
    assert "GRADIO_ALLOWED_PATHS is ignored" in told and "http://127.0.0.1:" in told
    assert "maskimg train FOLDER --out DIR" in told


# ----------------------------------------------------------------------------- helpers


def picture(path: Path, size: tuple[int, int]) -> Path:
    Image.radial_gradient("L").resize(size).convert("RGB").save(path)
    return path


def square_mask(path: Path, size: tuple[int, int]) -> Path:
    mask = Image.new("L", size)
    mask.paste(255, (4, 4, 12, 12))
    mask.save(path)
    return path


def canvas(background: Image.Image, layers: list[Image.Image]):
    """What the browser posts of a canvas."""

    def png(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()

    blobs = gr.components.image_editor.EditorDataBlobs
    return blobs(background=png(background), layers=[png(layer) for layer in layers], composite=None)
