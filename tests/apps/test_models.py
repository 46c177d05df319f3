"""The models that the page offers: which, how many are in memory, and what their own pages answer."""

import gc
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client
from tiny import tiny_pipeline

from maskimg.drawing.model_files import bundled_models
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import app
from maskimg_apps.demo.serving.models import MOST_LOADED, Models, short_name
from maskimg_apps.demo.serving.turn import TURN
from vqgan import load_image
from vqgan.files import ModelError

# Gradio's own statistics, every few calls.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with the models `bare` and `labelled`, one that is cut off, a tokenizer and other things."""
    folder = tmp_path_factory.mktemp("models")
    for name, labels in (("bare", False), ("labelled", True), ("cut", False)):
        pipeline = tiny_pipeline(labels=labels)
        pipeline.about["name"] = name
        pipeline.save_pretrained(folder / name)
    weights = folder / "cut" / "generator" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    tiny_pipeline().tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "labelled.training").mkdir()
    (folder / "note.txt").write_text("no model")
    return folder


def offered(folder: Path, chosen: str | None = None) -> Models:
    return Models(lambda name: Pipeline.from_pretrained(name, device="cpu", dtype="fp32"), chosen=chosen, folder=folder)


def test_the_chosen_model_the_bundled_ones_and_those_of_the_folder_are_offered(saved, tmp_path):
    assert offered(saved).names() == [*bundled_models(), "bare", "cut", "labelled"]
    models = offered(saved, chosen=str(saved / "labelled"))
    assert models.names() == ["labelled", *bundled_models(), "bare", "cut"] and models.first == "labelled"
    assert offered(tmp_path / "nowhere").names() == bundled_models()
    assert [short_name(place) for place in ("a/b c", "owner/name", "/x/ü", "/")] == ["b-c", "name", "model", "model"]


def test_a_model_that_is_written_while_the_page_is_open_is_offered_too(saved, tmp_path):
    models = offered(tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "new")
    assert "new" in models.names()
    assert models.held("new").image_size == 16


def test_no_more_than_two_models_are_in_memory_and_a_held_one_comes_back():
    made: list[weakref.ref] = []

    def load(name: str) -> Pipeline:
        pipeline = tiny_pipeline(seed=len(name))
        pipeline.about["name"] = name
        made.append(weakref.ref(pipeline))
        return pipeline

    models = Models(load)
    models._places = {name: name for name in ("a", "bb", "ccc")}  # no directories: `load` needs none
    held = {name: models.held(name) for name in models._places}
    for _ in range(4):
        for name, pipeline in held.items():
            assert pipeline.name == name
            assert sum(ref() is not None for ref in made) <= MOST_LOADED
    first = held["a"].generate("cat", seeds=3).images[0]
    assert np.array_equal(first, tiny_pipeline(seed=1).generate("cat", seeds=3).images[0])
    gc.collect()
    assert len(made) > 2 * MOST_LOADED and sum(ref() is not None for ref in made) == MOST_LOADED


def test_a_model_that_is_used_again_and_again_is_not_put_away():
    loaded = []
    models = Models(lambda name: loaded.append(name) or tiny_pipeline())
    models._places = {name: name for name in ("a", "b", "c")}
    for name in ("a", "b", "a", "c", "a", "b", "a"):
        models.pipeline(name)
    assert loaded.count("a") == 1


def test_a_model_that_was_trained_again_is_read_again(tmp_path):
    tiny_pipeline(seed=0).save_pretrained(tmp_path / "m")
    models = offered(tmp_path)
    before = models.held("m").generate("cat").images[0].tobytes()
    time.sleep(0.01)
    tiny_pipeline(seed=1).save_pretrained(tmp_path / "m")
    models.names()
    assert models.held("m").generate("cat").images[0].tobytes() != before


def test_a_model_that_cannot_be_used_is_named_and_its_place_is_not(saved):
    models = offered(saved)
    models.names()
    with pytest.raises(ModelError) as caught:
        models.held("cut").image_size  # noqa: B018
    assert str(caught.value).startswith("`cut/generator/model.safetensors` is incomplete")
    with pytest.raises(ModelError, match="there is no model `other`: choose another one"):
        models.pipeline("other")


# ----------------------------------------------------------------------------- their pages


@pytest.fixture(scope="module")
def address(saved, tmp_path_factory) -> Iterator[str]:
    yield from served(offered(saved, chosen=str(saved / "labelled")), tmp_path_factory.mktemp("uploads"))


def served(models: Models, uploads: Path, login: tuple[str, str] | None = None) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))

        def make(name: str | None):
            return app.build(models.held(name or ""), models=models, name=name)

        page = make(models.first)
        yield app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0), login=login), models=models, make=make)
        page.close(verbose=False)


def visit(address: str, folder: Path, **options) -> Client:
    """Patient: a page is made when it is first asked for, and this machine may do much else."""
    return Client(address, verbose=False, download_files=folder, httpx_kwargs={"timeout": 120}, **options)


def call(address: str, folder: Path, **options):
    client = visit(address, folder)
    try:
        return client.predict(**{"images": 1, "seed": 0} | options, api_name="/generate")
    finally:
        client.close()


def test_each_model_has_calls_of_its_own(address, saved, tmp_path):
    for where, name, values in (("", "labelled", {"label_class": "cat"}), ("model/bare/", "bare", {})):
        (picture,), _ = call(address + where, tmp_path, seed=5, **values)
        expected = Pipeline.from_pretrained(saved / name, device="cpu", dtype="fp32").generate(
            {"class": "cat"} if values else None, seeds=5
        )
        assert np.array_equal(np.asarray(load_image(picture["image"])), np.asarray(expected.images[0]))
    with pytest.raises(TypeError, match="label_class"):
        call(f"{address}model/bare/", tmp_path, label_class="cat")


def test_a_page_that_cannot_be_made_says_why_and_one_that_is_not_there_is_not_found(address, saved):
    answer = httpx.get(f"{address}model/cut/", timeout=120)
    assert answer.status_code == 503 and answer.text.startswith("`cut/generator/model.safetensors` is incomplete")
    for name in ("other", "..", "tokenizer", "labelled.training"):
        assert httpx.get(f"{address}model/{name}/", follow_redirects=True).status_code == 404 or name == ".."
    assert str(saved) not in httpx.get(f"{address}model/bare/config", timeout=120).text


def test_pages_of_two_models_draw_one_after_the_other(address, tmp_path):
    client = visit(f"{address}model/bare/", tmp_path)
    try:
        with TURN:
            job = client.submit(images=1, api_name="/generate")
            time.sleep(1.5)
            assert not job.done()
        assert len(job.result(timeout=120)[0]) == 1
    finally:
        client.close()


def test_a_page_is_made_anew_when_its_model_is(tmp_path):
    tiny_pipeline(labels=False).save_pretrained(tmp_path / "models" / "m")
    for address in served(offered(tmp_path / "models"), tmp_path / "uploads"):
        assert "label_class" not in httpx.get(f"{address}model/m/gradio_api/info", timeout=120).text
        tiny_pipeline(labels=True).save_pretrained(tmp_path / "models" / "m")
        assert "label_class" in httpx.get(f"{address}model/m/gradio_api/info", timeout=120).text


def test_one_login_opens_the_pages_of_all_models_and_nobody_comes_in_without(saved, tmp_path):
    models = offered(saved, chosen=str(saved / "bare"))
    for address in served(models, tmp_path, login=("ann", "secret")):
        other = f"{address}model/labelled/"
        for path in ("config", "gradio_api/info", "assets/x", f"gradio_api/file={os.devnull}"):
            assert httpx.get(other + path).status_code == 401
        assert httpx.get(other).headers["location"] == "../../"
        assert list(models._loaded) == ["bare"]  # nothing is loaded for strangers
        with httpx.Client(timeout=120) as visitor:
            for where in (address, other):
                wrong = visitor.post(f"{where}login", data={"username": "ann", "password": "wrong"})
                assert wrong.status_code == 400 and visitor.get(f"{other}config").status_code == 401
            visitor.post(f"{address}login", data={"username": "ann", "password": "secret"})
            assert visitor.get(f"{other}config").status_code == 200
        client = visit(other, tmp_path, auth=("ann", "secret"))
        assert len(client.predict(images=1, label_class="cat", api_name="/generate")[0]) == 1
        client.close()
