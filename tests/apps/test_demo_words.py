"""The demo of a model that listens to words and translates pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from page_values import VALUES
from PIL import Image, ImageColor
from tiny import listening_pipeline, tiny_pipeline

from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from maskimg_apps.demo import app, controls, running, runs, style
from maskimg_apps.demo.tabs import about

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return listening_pipeline()


@pytest.fixture(scope="module")
def client(pipeline, tmp_path_factory) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = app.build(pipeline)
        address = app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0)))
        client = Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
        yield client
        client.close()
        page.close(verbose=False)


def test_words_on_the_page_draw_what_they_draw_in_python(client, pipeline, tmp_path):
    pictures, seed = client.predict(
        label_class="bird", prompt="red apple", negative="dog", images=1, seed=7, random_seed=False,
        api_name="/generate",
    )  # fmt: skip
    assert seed == 7
    result = pipeline.generate({"class": "bird"}, prompt="red apple", negative="dog", seeds=7)
    write_png(result.images[0], result.recipes[0], tmp_path / "same.png")
    assert Path(pictures[0]["image"]).read_bytes() == (tmp_path / "same.png").read_bytes()


def test_a_call_says_which_words_the_model_never_saw(client):
    """A program sees no warning of the page's, so that the pictures say it."""
    (picture,), _ = client.predict(prompt="cow", images=1, seed=7, api_name="/generate")
    assert picture["caption"].startswith("seed 7. At most one caption of the model's training held `cow`")
    (picture,), _ = client.predict(prompt="red dog", images=1, seed=7, api_name="/generate")
    assert picture["caption"] == "seed 7"


def test_the_page_says_which_words_the_model_never_saw(pipeline, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(controls.gr, "Warning", told.append)
    order = runs.read_request(pipeline, VALUES | {"prompt": "<b>"})
    next(running.run_on(cast(running.Stage, None), pipeline, order, None, "Tokens", "generate"))
    assert "held `b`" in told[0] and "knows no word of the prompt" in told[1]


def test_translate_on_the_page_is_translate_in_python(client, pipeline, tmp_path):
    image = Image.linear_gradient("L").convert("RGB").resize((40, 20))
    image.save(tmp_path / "photo.png")
    pictures, _ = client.predict(
        image=handle_file(tmp_path / "photo.png"), prompt="dog", images=2, seed=3, random_seed=False,
        api_name="/translate",
    )  # fmt: skip
    result = pipeline.translate(tmp_path / "photo.png", prompt="dog", seeds=3, count=2)
    for shown, image, recipe in zip(pictures, result.images, result.recipes, strict=True):
        write_png(image, recipe, tmp_path / "same.png")
        assert Path(shown["image"]).read_bytes() == (tmp_path / "same.png").read_bytes()
    recipe = read_recipe(pictures[0]["image"])
    assert recipe is not None and (recipe["task"], recipe["source"]) == ("translate", "grey")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "zeppelin " * 9}, "word pieces long, and the model reads at most 8"),
        ({"prompt": "x" * 20_000}, "characters: say it in fewer words"),
    ],
)
def test_a_prompt_that_is_too_long_is_refused_in_words(client, values, words):
    with pytest.raises(AppError, match=words):
        client.predict(**values, api_name="/generate")


def test_a_missing_picture_to_translate_is_asked_for(client):
    with pytest.raises(AppError, match="no picture"):
        client.predict(image=None, api_name="/translate")


def test_a_recipe_with_words_sets_them_again(pipeline):
    recipe = pipeline.generate("bird", prompt="red apple", seeds=4).recipes[0]
    task, values, notes = runs.read_settings(pipeline, recipe)
    assert (task, values["prompt"], values["negative"], notes) == ("generate", "red apple", "", [])
    order = runs.read_request(pipeline, VALUES | values)
    assert order.prompt == "red apple" and order.seeds == (4,)
    _, _, notes = runs.read_settings(tiny_pipeline(), recipe)
    assert notes[0] == "this model was trained without captions, so its words are left out"


ABOUT = {
    "data": {"folder": "shapes", "pictures": 7790, "held_out": 390},
    "measured": {"codes_used": 0.97681, "samples": {"own_accuracy": None, "held_out": 390, "warnings": ["few", "old"]}},
    "plan": {"tokenizer": {"levels": [8, 5]}},
    "memorisation": {"samples": 32, "in_words": "no sign of it"},
    "bundled": True,
}


def test_the_page_says_what_a_model_was_trained_on_where_its_directory_tells_it(monkeypatch):
    pipeline = tiny_pipeline()
    assert runs.learnt_from(pipeline) == "" and "mk-hint" not in app._header(pipeline)
    monkeypatch.setattr(pipeline, "about", {"data": {"pictures": "many"}})
    assert runs.learnt_from(pipeline) == ""
    monkeypatch.setattr(pipeline, "about", ABOUT)  # of 7,790 it has seen all but those held out
    assert "Trained on 7,400 pictures; it draws nothing else." in app._header(pipeline)


def test_hints_can_be_read_in_the_light_and_in_the_dark():
    """WCAG asks for 4.5:1 of words of this size."""
    theme = style.theme()

    def colour(name: str, ending: str) -> tuple[int, ...]:
        value = getattr(theme, name + ending, None) or getattr(theme, name)
        return colour(value[1:], ending) if value.startswith("*") else ImageColor.getrgb(value)

    def brightness(rgb: tuple[int, ...]) -> float:
        linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb[:3]]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ending in ("", "_dark"):
        for ground in ("body_background_fill", "block_background_fill", "background_fill_secondary"):
            words, behind = (brightness(colour(name, ending)) for name in ("body_text_color_subdued", ground))
            assert (max(words, behind) + 0.05) / (min(words, behind) + 0.05) >= 4.5, (ground, ending)


def test_what_a_model_says_of_itself_is_read_by_people(monkeypatch):
    pipeline = tiny_pipeline()
    monkeypatch.setattr(pipeline, "about", ABOUT)
    facts = runs.facts(pipeline)
    assert facts["measured · codes used"] == "0.9768"
    assert facts["measured · samples · held out"] == "390"
    assert facts["measured · samples · warnings"] == "few, old"
    assert facts["memorisation"] == "no sign of it"
    assert facts["bundled"] == "yes"
    assert not [name for name, value in facts.items() if not value or set("{}[]") & set(value)]


def test_a_recipe_is_shown_without_the_marks_of_a_programming_language():
    pipeline = listening_pipeline()
    shown = about.show_recipe(pipeline, pipeline.generate("bird", prompt="red apple", seeds=1234567).recipes[0])
    assert "<td>1234567</td>" in shown and "red apple" in shown
    assert not set("{}[]") & set(shown)


def test_only_a_model_that_can_has_words_and_translate_on_its_page(client):
    calls = client.view_api(return_format="dict")["named_endpoints"]
    assert "/translate" in calls
    assert "prompt" in [parameter["parameter_name"] for parameter in calls["/inpaint"]["parameters"]]
    config = app.build(tiny_pipeline()).get_config_file()
    assert "translate" not in [each["api_name"] for each in config["dependencies"]]
    assert "Prompt" not in [each["props"].get("label") for each in config["components"]]
