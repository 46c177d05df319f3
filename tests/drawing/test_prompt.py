"""What a person asks for -> the condition of the networks, and what a recipe says of it."""

import pytest
import torch
from PIL import Image
from tiny import LABELS, TOKENIZER, WORDS, listening_pipeline, tiny_pipeline

from maskimg.drawing.request import Request
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from vqgan import Tokenizer
from vqgan.images import to_pil


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return listening_pipeline()


def test_words_change_the_picture_and_stand_in_its_recipe(pipeline):
    apple = pipeline.generate({"style": "flat"}, prompt="red apple", seeds=3)
    assert apple.recipes[0]["label"] == {"style": "flat"}
    assert apple.recipes[0]["prompt"] == "red apple"
    dog = pipeline.generate({"style": "flat"}, prompt="red dog", seeds=3)
    assert not torch.equal(apple.codes, dog.codes)
    again = pipeline.generate(Request({"style": "flat"}, "red apple"), seeds=[9, 3])
    assert torch.equal(again.codes[1], apple.codes[0])  # whatever is drawn beside it


def test_a_negative_prompt_matters_only_with_guidance(pipeline):
    plain = pipeline.generate(prompt="red apple", seeds=3)
    moved = pipeline.generate(prompt="red apple", negative="dog", seeds=3)
    assert not torch.equal(plain.codes, moved.codes)
    assert moved.recipes[0]["negative"] == "dog"
    off = Sampler(steps=4, guidance=1.0)
    without = [pipeline.generate(prompt="apple", negative=text, seeds=3, sampler=off).codes for text in (None, "dog")]
    assert torch.equal(*without)


def test_the_way_from_one_label_to_another_begins_and_ends_at_them(pipeline):
    ends = [pipeline.generate(name, seeds=5).codes for name in ("bird", "cat")]
    for share, end in ((0.0, ends[0]), (1.0, ends[1])):
        assert torch.equal(pipeline.generate("bird", towards="cat", share=share, seeds=5).codes, end)
    between = pipeline.generate("bird", towards="cat", share=0.5, seeds=5)
    assert between.recipes[0]["towards"] == {"class": "cat"} and between.recipes[0]["share"] == 0.5


def test_a_picture_is_translated_at_its_own_shape(pipeline):
    image = to_pil(torch.linspace(-1, 1, 16).expand(3, 8, 16))
    result = pipeline.translate(image, prompt="dog", seeds=2, count=2)
    assert [drawn.size for drawn in result.images] == [image.size] * 2
    assert result.recipes[0]["task"] == "translate"
    mirrored = pipeline.translate(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), prompt="dog", seeds=2)
    assert not torch.equal(mirrored.codes[0], result.codes[0])


def test_sources_are_made_as_they_were_in_training(pipeline):
    """This model's are grey: colours that are equally bright are one source."""
    red = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 16, 16)
    luma = 0.299 * 2 - 1
    grey = torch.full((3, 16, 16), luma)
    codes = [pipeline.translate(to_pil(image), seeds=1).codes for image in (red, grey)]
    assert torch.equal(*codes)


def test_inpainting_listens_to_words(pipeline):
    image = to_pil(torch.linspace(-1, 1, 16).expand(3, 16, 16))
    painted = Image.new("L", (16, 16))
    painted.paste(255, (4, 4, 12, 12))
    drawn = [pipeline.inpaint(image, painted, prompt=text, seeds=1).codes for text in ("red apple", "dog")]
    assert not torch.equal(*drawn)


def test_a_model_that_knows_words_is_written_and_read_again(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32")
    assert again.words == WORDS
    drawn = [each.generate("bug", prompt="red apple", seeds=1).codes for each in (pipeline, again)]
    assert torch.equal(*drawn)
    image = to_pil(torch.linspace(-1, 1, 16).expand(3, 16, 16))
    assert torch.equal(*[each.translate(image, seeds=1).codes for each in (pipeline, again)])


def test_the_tokenizer_of_the_sources_may_be_another(pipeline, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = Tokenizer(TOKENIZER)
    model = Pipeline(
        pipeline.tokenizer, pipeline.net, labels=LABELS, words=WORDS, source_tokenizer=other, recipe=pipeline.recipe,
        device="cpu", dtype="fp32",
    )  # fmt: skip
    image = to_pil(torch.linspace(-1, 1, 16).expand(3, 16, 16))
    drawn = model.translate(image, seeds=1).codes
    assert not torch.equal(drawn, pipeline.translate(image, seeds=1).codes)
    model.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32")
    assert torch.equal(again.translate(image, seeds=1).codes, drawn)


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"prompt": "x" * 20_000}, "characters: say it in fewer words"),
        ({"prompt": "zeppelins everywhere"}, "word pieces long, and the model reads at most 8"),
        ({"towards": "cat", "share": 1.5}, "share must be between 0 and 1, got 1.5"),
        ({"towards": "cow"}, "there is no class `cow`"),
        ({"sampler": Sampler(steps=4, field_guidance=(("colour", 2.0),))}, "no field `colour` for guidance"),
        ({"sampler": Sampler(steps=4, field_guidance=(("stile", 2.0),))}, "did you mean `style`?"),
    ],
)
def test_what_cannot_be_asked_for_gets_its_sentence(pipeline, asked, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        pipeline.generate(**asked)


def test_a_model_without_words_or_sources_says_so():
    plain = tiny_pipeline()
    with pytest.raises(ValueError, match="trained without captions: ask for a label"):
        plain.generate(prompt="red apple")
    with pytest.raises(ValueError, match="trained without source pictures"):
        plain.translate(to_pil(torch.zeros(3, 16, 16)))
    with pytest.raises(ValueError, match="trained with other words"):
        Pipeline(plain.tokenizer, plain.net, labels=LABELS, words=WORDS)
