"""Values of a wrong type or out of range: a sentence that names the parameter and what came, and nothing is ignored."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import WORDS, listening_pipeline, tiny_pipeline, watched

from maskimg import values
from maskimg.cli.main import main
from maskimg.drawing import edits
from maskimg.drawing.folders import each_name, read_table, sample_folder
from maskimg.drawing.request import Request, expand_seeds
from maskimg.networks.words import WordPieces, read_words
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from maskimg.values import PromptWarning, WrongType
from vqgan import Tokenizer, load_image

PICTURE = Image.linear_gradient("L").convert("RGB").resize((16, 16))
PAINTED = np.zeros((16, 16), bool)
PAINTED[5, 5] = True
read: Any = load_image  # with what its signature does not allow


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def listening() -> Pipeline:
    return listening_pipeline()


# ----------------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3), np.uint8(3)])
def test_whole_numbers_of_numpy_and_torch_are_whole_numbers(value):
    found = values.whole_number("seed", value, 0, 9)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize(
    "value, came",
    [
        (True, "`True`"), (np.bool_(True), "`True`"), (torch.tensor(True), r"`tensor\(True\)`"), (2.0, "2.0"),
        ("3", "`3`"),
        ([3], r"`\[3\]`"), (torch.tensor([3]), "the type `Tensor`"), (None, "`None`"), (math.nan, "nan"),
        (b"3", "`b'3'`"), ("a\n\ud800", r"`a\\n\\ud800`"), ("x" * 999, "x…`"), (object(), "the type `object`"),
    ],
)  # fmt: skip
def test_what_is_no_whole_number_is_refused_as_such(value, came):
    with pytest.raises(WrongType, match="seed must be a whole number between 0 and 9, got .*" + came):
        values.whole_number("seed", value, 0, 9)


@pytest.mark.parametrize("value", [-1, 10, 2**63, 2**200, 10**5000], ids=["-1", "10", "2^63", "2^200", "10^5000"])
def test_numbers_out_of_range_are_refused_however_long_they_are(value):
    with pytest.raises(ValueError, match="seed must be between 0 and 9, got") as caught:
        values.whole_number("seed", value, 0, 9)
    assert len(str(caught.value)) < 130
    with pytest.raises(ValueError, match="share must be"):
        values.real_number("share", value, 0, 9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", None, True, [0.5], 0.5j], ids=str)
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="share must be (a number )?between 0 and 1, got "):
        values.real_number("share", value, 0, 1)


def test_text_may_have_line_breaks_and_no_halves_of_characters():
    assert values.text("prompt", "naïve\n🍎") == "naïve\n🍎"
    for odd in ("\ud83d", "a\0", "\x1b[31m", "\x7f"):
        with pytest.raises(ValueError, match="prompt holds the character U\\+00|prompt holds the character U\\+D83D"):
            values.text("prompt", odd)


# ----------------------------------------------------------------------------- Python


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"label": ["bird", "bug"]}, "label must be one name, .* got `\\['bird', 'bug'\\]`: draw the pictures of each"),
        ({"label": {"class": 3}}, "label of the field `class` must be a string, got 3"),
        ({"label": {"class": ["bird"]}}, "label of the field `class` must be a string"),
        ({"label": {3: "bird"}}, "a field of label must be a string, got 3"),
        ({"label": b"bird"}, "label must be one name, .* got `b'bird'`"),
        ({"label": 3}, "label must be one name"),
        ({"label": {"": "bird", "class": "bug"}}, "class is asked for twice, as `bird` and `bug`"),
        ({"towards": ["bug"]}, "towards must be one name"),
        ({"towards": {"": "bird", "class": "bug"}}, "class is asked for twice"),
        ({"share": 0.3}, "share goes with towards"),
        ({"towards": "bug", "share": "half"}, "share must be a number between 0 and 1, got `half`"),
        ({"towards": "bug", "share": math.nan}, "share must be between 0 and 1, got nan"),
        ({"prompt": 3}, "prompt must be a string, got 3"),
        ({"negative": ["x"]}, "negative must be a string, got `\\['x'\\]`"),
        ({"label": Request(prompt="red"), "prompt": "dog"}, "prompt is given twice"),
        ({"seeds": [1, 5], "count": 3}, "count is 3, but there are 2 seeds"),
        ({"seeds": [1, 5], "count": 1}, "count is 1, but there are 2 seeds"),
        ({"seeds": 1.0}, "seeds must be a whole number between 0 and 4294967295, got 1.0"),
        ({"seeds": True}, "seeds must be a whole number"),
        ({"seeds": -1}, "seeds must be between 0 and 4294967295, got -1"),
        ({"seeds": 2**40}, "seeds must be between 0 and 4294967295"),
        ({"seeds": "7"}, "seeds must be a whole number"),
        ({"seeds": "77"}, "seeds must be a whole number"),
        ({"seeds": {1: 2}}, "seeds must be a whole number or a list of them"),
        ({"seeds": {1, 2}}, "seeds must be a whole number or a list of them"),
        ({"seeds": []}, "give at least one seed"),
        ({"seeds": [1, 2.5]}, "each of the seeds must be a whole number"),
        ({"seeds": np.array([[1, 2]])}, "seeds must be a whole number or a list of them"),
        ({"count": 0}, "count must be 1 or more, got 0"),
        ({"count": -2}, "count must be 1 or more, got -2"),
        ({"count": 2.0}, "count must be a whole number, 1 or more, got 2.0"),
        ({"count": True}, "count must be a whole number"),
        ({"count": 2**40}, "count must be at most 65536 in one call"),
        ({"best_of": 1.5}, "best_of must be a whole number, 1 or more, got 1.5"),
        ({"best_of": 0}, "best_of must be 1 or more, got 0"),
        ({"best_of": 2**40}, "best_of must be at most 65536"),
        ({"sampler": 3}, "sampler must be a Sampler, the name of a preset or None, got 3"),
        ({"sampler": {"steps": 3}}, "sampler must be a Sampler"),
        ({"sampler": "no such"}, "there is no preset `no such`"),
    ],
)  # fmt: skip
def test_generate_uses_what_it_is_given_or_refuses_it(listening, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        listening.generate(**asked)


def test_a_prompt_in_a_prompt_is_refused():
    with pytest.raises(WrongType, match="label must be one name, .* got a value of the type `Request`"):
        Request(label=Request())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "seeds", [np.int64(7), torch.tensor(7), np.array([7]), torch.tensor([7]), (7,), range(7, 8)], ids=str
)
def test_seeds_of_numpy_and_torch_draw_what_plain_ones_draw(pipeline, seeds):
    result = pipeline.generate("bird", seeds=seeds)
    assert torch.equal(result.codes, pipeline.generate("bird", seeds=7).codes)
    assert result.recipes[0]["seed"] == 7 and type(result.recipes[0]["seed"]) is int


def test_a_list_of_seeds_says_how_many_pictures_there_are():
    assert expand_seeds([5, 1], 2) == expand_seeds([5, 1]) == [5, 1]
    assert expand_seeds(5) == [5]


@pytest.mark.parametrize(
    "draw, sentence",
    [
        (lambda p: p.inpaint(PICTURE, PAINTED, coverage="x"), "coverage must be a number"),
        (lambda p: p.inpaint(PICTURE, PAINTED, coverage=None), "coverage must be a number, got `None`"),
        (lambda p: p.inpaint(PICTURE, PAINTED, grow=1.5), "grow must be a whole number"),
        (lambda p: p.inpaint(PICTURE, PAINTED, grow=-1), "grow must be 0 or more"),
        (lambda p: p.inpaint(PICTURE, PAINTED, feather=[0.5]), "feather must be a number"),
        (lambda p: p.inpaint(PICTURE, PAINTED, window="all"), "window must be a whole number"),
        (lambda p: p.inpaint(PICTURE, PAINTED, window=8.0), "window must be a whole number"),
        (lambda p: p.outpaint(PICTURE, (1, 0)), "margins must be four whole numbers"),
        (lambda p: p.outpaint(PICTURE, "1010"), "margins must be four whole numbers"),
        (lambda p: p.outpaint(PICTURE, None), "margins must be four whole numbers"),
        (lambda p: p.outpaint(PICTURE, (1.0, 0, 0, 0)), "each of the margins must be a whole number"),
        (lambda p: p.outpaint(PICTURE, (True, 0, 0, 0)), "each of the margins must be a whole number"),
        (lambda p: p.outpaint(PICTURE, (1, 0, 0, 0), window="x"), "window must be a whole number"),
        (lambda p: p.vary(PICTURE, "much"), "strength must be a number"),
        (lambda p: p.vary(PICTURE, math.nan), "strength must be a number"),
        (lambda p: p.reconstruct(PICTURE, size="8"), "size must be a whole number"),
        (lambda p: p.reconstruct(PICTURE, size=8.5), "size must be a whole number"),
        (lambda p: p.reconstruct(3), "expected a picture or the path of one, got `3`"),
        (lambda p: p.reconstruct(["a.png"]), "expected a picture or the path of one"),
        (lambda p: p.reconstruct(None), "expected a picture or the path of one"),
        (lambda p: p.reconstruct("a\0.png"), "cannot be the path of a file"),
        (lambda p: watched(p, seeds=1.5), "seeds must be a whole number"),
        (lambda p: watched(p, codes=[[1]]), "codes must be grids"),
        (lambda p: watched(p, codes=torch.zeros(1, 4, 4)), "codes must be integers, got torch.float32"),
        (lambda p: p.doubts(None, torch.zeros(1, 4, 4)), "codes must be integers"),
        (lambda p: p.decode("x"), "codes must be a tensor"),
        (lambda p: p.draw(3, Request()), "edit must be an Edit"),
        (lambda p: p.draw("bird", Request()), "edit must be an Edit"),
        (lambda p: list(p.steps(edits.generation(p), "bird")), "request must be a Request"),
        (lambda p: p.recipe_for(None, 1.5), "seed must be a whole number"),
        (lambda p: p.tokenizer.encode(3), "expected images \\(b, 3, H, W\\)"),
        (lambda p: p.tokenizer.encode(torch.zeros(1, 3, 16, 16, dtype=torch.int64)), "expected images .* of floats"),
        (lambda p: p.tokenizer.decode([1]), "expected codes \\(b, h, w\\)"),
        (lambda p: p.tokenizer.decode(torch.zeros(1, 4, 4)), "expected codes \\(b, h, w\\) of whole numbers"),
        (lambda p: type(p.tokenizer).from_pretrained(3), "there is no model directory `3`"),
        (lambda p: Tokenizer.from_pretrained(""), "there is no model directory ``"),
        (lambda p: type(p).from_pretrained(3), "there is no model directory `3`"),
        (lambda p: type(p).from_pretrained(["emoji-64"]), "there is no model directory"),
        (lambda p: Pipeline.from_pretrained("a\0b"), "there is no model directory"),
        (lambda p: read(3), "expected a picture or the path of one, got `3`"),
        (lambda p: read("x.png", max_pixels="many"), "max_pixels must be a whole number"),
    ],
)  # fmt: skip
def test_every_method_names_what_it_cannot_use(pipeline, draw, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        draw(pipeline)


@pytest.mark.parametrize(
    "numbers, sentence",
    [
        ({"steps": "4"}, "steps must be a whole number between 1 and 1024, got `4`"),
        ({"steps": None}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"counts": "12"}, "counts must be a list of whole numbers"),
        ({"counts": [1, 2.5]}, "counts must be a whole number"),
        ({"guidance": "2"}, "guidance must be a number"),
        ({"guidance": [1, "2"]}, "guidance must be a number"),
        ({"top_p": [0.5, 0.6]}, "top_p must be a number between 0.001 and 1"),
        ({"order": 3}, "order must be one of"),
        ({"schedule": 3}, "schedule must be a string"),
        ({"critic_revises": 1}, "critic_revises must be true or false"),
        ({"field_guidance": "class"}, "field_guidance must be pairs"),
        ({"field_guidance": 3}, "field_guidance must be pairs"),
        ({"field_guidance": [("class", 2.0), ("class", 3.0)]}, "field_guidance names `class` twice"),
    ],
)
def test_a_sampler_of_wrong_types_is_refused(numbers, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampler(**numbers)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"labels": "bird"}, "labels must be a list, one label for each picture, got `bird`"),
        ({"labels": [["bird", "bug"]]}, "label must be one name"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"batch_size": "3"}, "batch size must be a whole number"),
        ({"best_of": 2.5}, "best_of must be a whole number"),
        ({"sampler": 3}, "sampler must be a Sampler"),
    ],
)
def test_the_batch_script_refuses_before_it_writes(pipeline, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample_folder(pipeline, tmp_path / "out", **({"labels": ["bird"]} | options))
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_can_be_written_into_a_recipe(pipeline, tmp_path):
    result = pipeline.inpaint(PICTURE, PAINTED, coverage=np.float32(0), grow=np.int64(0), feather=np.float64(0.5))
    result.save(tmp_path)
    pipeline.outpaint(PICTURE, np.array([1, 0, 0, 0]), window=np.int64(16)).save(tmp_path)


# ----------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--label", "class=bird", "--label", "class=bug"], "--label names class twice, as `bird` and `bug`"),
        (["--label", "bird", "--label", "class=bug"], "class is asked for twice, as `bird` and `bug`"),
        (["--label", "=bird"], "--label must be NAME or FIELD=NAME, got `=bird`"),
        (["--towards", "class=bird", "--towards", "class=bug"], "--towards names class twice"),
        (["--guide", "style=2", "--guide", "style=3"], "field_guidance names `style` twice"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice"),
        (["--seed=1", "--seed=1"], "--seed is given twice"),
        (["--see", "1", "--seed", "2"], "--seed is given twice"),
        (["--out", "a"], "--out is given twice"),
        (["--critic-keeps", "--critic-keeps"], "--critic-keeps is given twice"),
        (["--steps", "2.5"], "--steps must be a whole number, got `2.5`"),
        (["--count", "99999999999"], "--count must be between 1 and 10000000, got 99999999999"),
        (["--prompt", "a\0b"], "contains characters that are not text"),
        (["--prompt", "\ud800"], "contains characters that are not text"),
        (["--model", "x" * 10_000], "there is no model directory"),
    ],
)
def test_the_command_line_ignores_nothing_that_it_is_given(pipeline, tmp_path, monkeypatch, capsys, given, sentence):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda name, **_: pipeline if len(str(name)) < 99 else load(name))
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--out", str(tmp_path / "out"), *given])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("maskimg: ") and sentence in line and len(line) < 1100
    assert not (tmp_path / "out").exists()


load = Pipeline.from_pretrained


def test_a_file_of_settings_that_says_something_twice_is_refused(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("size: 16\ngenerator:\n  dim: 32\n  dim: 64\n")
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path), "--out", str(tmp_path / "m"), "--config", str(tmp_path / "config.yaml")])
    assert "sets `dim` twice, on lines 3 and 4" in capsys.readouterr().err


def test_labels_of_a_table_and_of_the_command_line_are_held_against_each_other(pipeline, tmp_path):
    twice = Request({"": "bird", "class": "bug"})
    (tmp_path / "t.csv").write_text("style\nflat\n")
    for read in (lambda: read_table(tmp_path / "t.csv", pipeline.reader, twice), lambda: each_name(LABELED, twice, 1)):
        with pytest.raises(ValueError, match="class is asked for twice"):
            read()


LABELED = tiny_pipeline().labels


# ----------------------------------------------------------------------------- words that the model never saw


def test_what_was_learnt_knows_which_words_it_saw_also_after_it_was_written_and_read():
    words = WordPieces.learn(["red apple", "green apple", "a red café"])
    for each in (words, read_words(words.numbers)):
        assert isinstance(each, WordPieces) and each.rare == ("a", "café", "green")
        assert each.unknown("A green zeppelin, zeppelin!") == ["zeppelin"]
        assert each.unknown("cafe\u0301") == []  # the accent typed on its own
        assert each.remarks(["green apples"]) == [
            "no caption of the model's training held `apples` (did you mean `apple`?), so it does not know it"
        ]


def test_a_model_that_kept_only_its_common_words_says_no_more_than_it_knows(listening):
    (about,) = WORDS.remarks(["red zeppelin"])
    assert about == "at most one caption of the model's training held `zeppelin`, so it hardly knows it"


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ("cow", "the model knows no word of the prompt"),
        ("", "the prompt is empty, so it asks for nothing"),
        ("  ", "the prompt is empty, so it asks for nothing"),
        ("!?", "the model knows no word of the prompt"),
        ("cat cow", "held `cat` and `cow`, so it hardly knows them"),
        ("dogs red", "held `dogs` (did you mean `dog`?)"),
    ],
)
def test_words_that_no_caption_held_are_warned_of_and_drawn_all_the_same(listening, prompt, sentence):
    with pytest.warns(PromptWarning) as caught:
        result = listening.generate(prompt=prompt)
    assert len(result.images) == 1
    assert any(sentence in str(each.message) for each in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listening.generate(prompt="Red, APPLE!")


def test_every_way_to_draw_warns_of_words(listening):
    draws = [
        lambda: listening.generate(negative="cow"),
        lambda: listening.translate(PICTURE, prompt="cow"),
        lambda: listening.inpaint(PICTURE, PAINTED, prompt="cow"),
        lambda: listening.outpaint(PICTURE, (1, 0, 0, 0), prompt="cow"),
        lambda: listening.vary(PICTURE, prompt="cow"),
        lambda: listening.generate(Request(prompt="cow")),
    ]
    for draw in draws:
        with pytest.warns(PromptWarning) as caught:
            draw()
        assert "held `cow`" in str(caught[0].message)
        assert all(each.filename == __file__ for each in caught)  # where somebody wrote the words


def test_a_run_of_many_pictures_warns_once(listening, tmp_path):
    asked = [Request(prompt=text) for text in ("cow", "red cow", "elk") for _ in range(3)]
    with pytest.warns(PromptWarning) as caught:
        sample_folder(listening, tmp_path / "out", asked, batch_size=2, sampler=Sampler(steps=1))
    told = [str(each.message) for each in caught]
    assert len(told) == 2 and "held `cow` and `elk`" in told[0]


def test_the_command_line_notes_unknown_words_in_one_line(listening, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: listening)
    (tmp_path / "t.csv").write_text("prompt\nred dog\ncow\n")
    assert main(["sample", "--out", str(tmp_path / "out"), "--from", str(tmp_path / "t.csv"), "--steps", "1"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "`cow`" in notes[0] and "PromptWarning" not in notes[0]


# ----------------------------------------------------------------------------- numbers that are none


@pytest.fixture
def broken() -> Pipeline:
    """A pipeline whose network computes NaN."""
    pipeline = listening_pipeline()
    for parameter in pipeline.net.parameters():
        parameter.data.fill_(math.nan)
    return pipeline


MANY_STEPS = Sampler(steps=18)


@pytest.mark.parametrize("order", ["confidence", "halton", "random", "moment", "critic"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda p, **o: p.generate(**o),
        lambda p, **o: p.inpaint(PICTURE, PAINTED, grow=0, **o),
        lambda p, **o: p.outpaint(PICTURE, (1, 0, 0, 0), **o),
        lambda p, **o: p.vary(PICTURE, 0.1, **o),
        lambda p, **o: p.translate(PICTURE, **o),
        lambda p, **o: watched(p, complete=False, **o),
        lambda p, **o: p.generate(best_of=2, **o),
    ],
    ids=["generate", "inpaint", "outpaint", "vary", "translate", "steps", "best of"],
)
def test_numbers_that_are_none_never_become_a_picture(broken, draw, order):
    """With one token to draw and 18 steps, the check of the last step never came."""
    with pytest.raises(ValueError, match="predictions are not finite in fp32: it has to be trained again"):
        draw(broken, sampler=Sampler(steps=18, order=order))


def test_numbers_that_are_none_end_the_batch_script_and_the_page(broken, tmp_path):
    with pytest.raises(ValueError, match="predictions are not finite"):
        sample_folder(broken, tmp_path / "out", ["bird"], sampler=MANY_STEPS)
    assert not list((tmp_path / "out").glob("*.png"))
    from maskimg_apps.demo import drawing

    request = Request(seeds=[1], sampler=MANY_STEPS)
    with pytest.raises(ValueError, match="predictions are not finite"):
        list(drawing.draw(broken, request, share=0))


def test_a_critic_and_a_tokenizer_that_compute_no_numbers_are_told_apart(pipeline):
    broken = tiny_pipeline(seed=3)
    assert broken.critic is not None
    for parameter in broken.critic.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(ValueError, match="doubts are not finite"):
        broken.generate("bird", best_of=2)
    for parameter in broken.tokenizer.decoder.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(ValueError, match="pictures are not finite"):
        broken.generate("bird")
