"""What is written into a finished model: figures and words, while every weight stays bit for bit."""

import pytest
from tiny import tiny_pipeline

from maskimg.evaluation.card import amend, weights_in, with_section
from maskimg.pipeline import Pipeline
from vqgan import files


def test_figures_go_into_the_model_and_its_weights_stay(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model", half=True)
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*.safetensors")}
    weights = weights_in(tmp_path / "model")
    assert len(weights) == len(before) == 3

    amend(tmp_path / "model", lambda about: about.update(measured={"a": 1}), "Measured", "a is 1.")
    amend(tmp_path / "model", lambda about: about["measured"].update(b=2), "Measured", "a is 1, b is 2.")

    assert {path: path.read_bytes() for path in before} == before
    assert weights_in(tmp_path / "model") == weights
    files.verify(tmp_path / "model")
    assert Pipeline.from_pretrained(tmp_path / "model", device="cpu").about["measured"] == {"a": 1, "b": 2}
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("# tiny")
    assert card.count("## Measured") == 1 and card.endswith("## Measured\n\na is 1, b is 2.\n")


def test_a_failed_change_leaves_the_model_as_it_was(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    with pytest.raises(KeyError):
        amend(tmp_path / "model", lambda about: about["nothing"].update(a=1), "Measured", "x")
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before
    with pytest.raises(files.ModelError, match="no model directory"):
        amend(tmp_path / "none", lambda about: None, "Measured", "x")


def test_a_section_is_put_where_it_was_or_at_the_end():
    card = "# A\n\ntext\n\n## B\n\nold\n\n### deeper\n\n## C\n\nend\n"
    assert with_section(card, "B", "new") == "# A\n\ntext\n\n## B\n\nnew\n\n## C\n\nend\n"
    assert with_section(card, "C", "new\n") == card.replace("end", "new")
    assert with_section(card, "D", "new") == card + "\n## D\n\nnew\n"
    assert with_section(card, "B", r"\1 [x]").count(r"\1 [x]") == 1
