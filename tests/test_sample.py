"""The batch script: seeds to files, in any batch size, each file whole."""

import pytest
from tiny import tiny_pipeline

from maskimg.noise import SEEDS
from maskimg.recipe import read_recipe
from maskimg.sampler import Sampler
from maskimg_apps.sample import sample_folder


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def test_the_batch_size_changes_no_file(pipeline, tmp_path):
    for size in (1, 3, 7):
        assert sample_folder(pipeline, tmp_path / str(size), count=7, seed=5, batch_size=size) == 7
    for path in (tmp_path / "1").iterdir():
        assert (
            path.read_bytes() == (tmp_path / "3" / path.name).read_bytes() == (tmp_path / "7" / path.name).read_bytes()
        )


def test_seeds_go_round_at_the_end_of_their_range(pipeline, tmp_path):
    sample_folder(pipeline, tmp_path, count=2, seed=SEEDS - 1)
    assert sorted(read_recipe(path)["seed"] for path in tmp_path.iterdir()) == [0, SEEDS - 1]


def test_nothing_half_written_is_left_or_counted(pipeline, tmp_path):
    (tmp_path / ".000001.png.tmp").write_bytes(b"half")
    assert sample_folder(pipeline, tmp_path, count=2) == 2
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["000000.png", "000001.png"]
    assert sample_folder(pipeline, tmp_path, count=2) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "fast"},
        {"sampler": Sampler(counts=(4, 12), guidance=(1.0, 2.0), token_temperature=(2.0, 0.5))},
        {"best_of": 2},
    ],
)
def test_a_folder_is_recognised_when_it_is_asked_for_again(pipeline, tmp_path, options):
    """Whatever the recipe holds: JSON has lists where a Sampler has tuples."""
    assert sample_folder(pipeline, tmp_path, count=2, **options) == 2
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sample_folder(pipeline, tmp_path, count=3, **options) == 1
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())


def test_a_folder_of_another_recipe_is_refused(pipeline, tmp_path):
    sample_folder(pipeline, tmp_path, count=1)
    for options in ({"sampler": "fast"}, {"best_of": 2}, {"label": "cat"}):
        with pytest.raises(ValueError, match=r"000000.png` was drawn with another recipe: choose another folder"):
            sample_folder(pipeline, tmp_path, count=1, **options)


@pytest.mark.parametrize("best_of", [1, 3])
def test_a_file_does_not_depend_on_how_many_are_drawn_together(pipeline, tmp_path, best_of):
    sample_folder(pipeline, tmp_path / "together", count=4, label="cat", best_of=best_of)
    sample_folder(pipeline, tmp_path / "alone", count=1, seed=2, label="cat", best_of=best_of)
    assert (tmp_path / "alone" / "000002.png").read_bytes() == (tmp_path / "together" / "000002.png").read_bytes()


@pytest.mark.parametrize("options", [{"count": 0}, {"count": 1, "batch_size": 0}, {"count": 1, "seed": -1}])
def test_numbers_out_of_range_get_a_sentence(pipeline, tmp_path, options):
    with pytest.raises(ValueError, match="must be"):
        sample_folder(pipeline, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
