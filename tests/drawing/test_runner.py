"""Requests and edits are what all that draws hands to the engine; old names still work, with a warning."""

import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

import maskimg
from maskimg.drawing import edits
from maskimg.drawing.request import Request, make_request
from maskimg.sampler import Sampler


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


PHOTO = Image.effect_noise((16, 16), 80).convert("RGB")


def test_a_method_of_the_pipeline_is_its_edit_and_its_request(pipeline):
    asked = {"seeds": 5, "count": 2, "sampler": Sampler(steps=3), "best_of": 2}
    request = Request("cat", seeds=[5, 6], sampler=Sampler(steps=3), best_of=2)
    for result, edit in (
        (pipeline.generate("cat", **asked), edits.generation(pipeline)),
        (pipeline.outpaint(PHOTO, (1, 0, 0, 0), "cat", **asked), edits.outpainting(pipeline, PHOTO, (1, 0, 0, 0))),
        (pipeline.vary(PHOTO, 0.5, "cat", **asked), edits.variation(pipeline, PHOTO, 0.5, request.seeds)),
    ):
        drawn = pipeline.draw(edit, request)
        assert torch.equal(drawn.codes, result.codes) and drawn.recipes == result.recipes
        *_, last = pipeline.steps(edit, request)
        assert last.chosen and last.share == 1 and torch.equal(last.codes, drawn.codes)


def test_steps_show_what_is_predicted_only_where_that_is_asked_for(pipeline):
    edit, request = edits.generation(pipeline), Request("cat", sampler=Sampler(steps=4))
    bare, whole = (list(pipeline.steps(edit, request, complete=complete)) for complete in (False, True))
    assert [int((step.part == pipeline.mask_id).sum()) for step in bare[:-1]] == [
        int(step.masked.sum()) for step in bare[:-1]
    ]
    assert all((step.part < pipeline.mask_id).all() for step in whole)
    assert torch.equal(bare[-1].codes, whole[-1].codes)


def test_what_cannot_be_drawn_is_refused_before_the_first_step(pipeline):
    with pytest.raises(ValueError, match="expected one seed for each of 3 grids, got 2"):
        pipeline.steps(edits.completion(pipeline, torch.full((3, 4, 4), pipeline.mask_id)), Request(seeds=[1, 2]))
    with pytest.raises(ValueError, match="best_of needs a critic"):
        tiny_pipeline(critic=False).steps(edits.generation(pipeline), Request(best_of=2))


def test_a_request_keeps_what_it_is_given_and_takes_what_is_said_beside_it():
    request = make_request(Request("cat", seeds=[7], best_of=2), prompt="red", sampler="fast")
    assert (request.label, request.seeds, request.best_of) == ("cat", (7,), 2)
    assert (request.prompt, request.sampler) == ("red", "fast")
    assert make_request(Request(seeds=[7]), count=3).seeds == (7, 8, 9)
    with pytest.raises(ValueError, match="best_of is given twice"):
        make_request(Request(best_of=2), best_of=3)


def test_old_names_work_and_warn(pipeline):
    with pytest.warns(DeprecationWarning, match="`variations` is called `vary`"):
        old = pipeline.variations(PHOTO, 0.5, seeds=3)
    assert torch.equal(old.codes, pipeline.vary(PHOTO, 0.5, seeds=3).codes)
    with pytest.warns(DeprecationWarning, match="`edit` is `draw"):
        old = pipeline.edit(edits.generation(pipeline), "cat", seeds=[3])
    assert torch.equal(old.codes, pipeline.generate("cat", seeds=3).codes)
    with pytest.warns(DeprecationWarning, match="`Prompt` is called `Request`"):
        asked = maskimg.Prompt("cat", text="red", negative="blue")
    assert (asked.label, asked.prompt, asked.negative) == ("cat", "red", "blue")
