"""Sources made from pictures, and pairs of two folders."""

import pytest
import torch
from helpers import tiny_pictures
from PIL import Image

from maskimg.data.source_pictures import both, kind_of, read_sources, transform
from maskimg.data.sources import DataError
from vqgan.images import normalize, to_uint8


def ramp() -> torch.Tensor:
    return torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)


def test_grey_is_the_luma_in_all_channels():
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])[..., None, None].expand(4, 3, 8, 8)
    grey = transform("grey", colours)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 1], grey[:, 2])
    torch.testing.assert_close((grey[:, 0, 0, 0] + 1) / 2, torch.tensor([0.299, 0.587, 0.114, 1.0]))


def test_edges_are_dark_where_brightness_changes_and_white_elsewhere():
    image = torch.full((1, 3, 16, 16), -1.0)
    image[..., 8:] = 1
    edges = transform("edges", image)
    assert (edges[..., :6] == 1).all() and (edges[..., 10:] == 1).all()
    assert (edges[..., 7:9] < 0).all()


def test_low_resolution_keeps_the_shape_and_loses_what_is_finer_than_two_pixels():
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    assert transform("lowres", checks.expand(1, 3, 16, 16)).abs().max() < 1e-6
    torch.testing.assert_close(transform("lowres", ramp()), ramp(), atol=0.1, rtol=0)


def test_a_source_of_no_kind_is_refused():
    with pytest.raises(ValueError, match="no source `sepia`: choose grey, edges, lowres"):
        transform("sepia", ramp())
    assert [kind_of(source) for source in ("grey", "some/folder")] == ["grey", "folder"]


def test_sources_keep_the_order_labels_and_held_out_part_of_their_pictures(tmp_path):
    pictures = tiny_pictures()
    same, sources = read_sources("grey", pictures, tmp_path)
    assert same is pictures
    assert sources.names == pictures.names and torch.equal(sources.held_out, pictures.held_out)
    assert torch.equal(sources.pixels, to_uint8(transform("grey", normalize(pictures.pixels))))
    assert sources.fingerprint != pictures.fingerprint
    learnt = both(pictures, sources)
    assert len(learnt.names) == len(set(learnt.names)) == 24 == len(learnt.pixels)


def _folder(path, names, value):
    path.mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (16, 16), (value, 10 * i, 0)).save(path / name)


def test_pictures_of_two_folders_are_paired_by_their_names_whatever_the_suffix(tmp_path):
    _folder(tmp_path / "sources", ["b.png", "a.webp", "extra.png"], 200)
    pictures = tiny_pictures(2)
    pictures = type(pictures)(**{**vars(pictures), "names": ["a.png", "b.jpg"]})
    _, sources = read_sources(str(tmp_path / "sources"), pictures, tmp_path / "work")
    assert sources.names == ["a.png", "b.jpg"]
    assert sources.pixels[0, 1].float().mean() == pytest.approx(10, abs=2)  # of `a`, the second one written
    assert sources.pixels[1, 1].float().mean() == pytest.approx(0, abs=2)


def test_a_picture_without_a_source_is_named(tmp_path):
    _folder(tmp_path / "sources", ["000.png"], 200)
    with pytest.raises(DataError, match="11 of 12 pictures have no source in .*, such as `001.png`"):
        read_sources(str(tmp_path / "sources"), tiny_pictures(), tmp_path / "work")


def test_a_picture_with_two_sources_is_refused_unless_one_has_its_whole_name(tmp_path):
    """The last of them used to be taken."""
    _folder(tmp_path / "sources", ["a.png", "a.webp"], 200)
    pictures = tiny_pictures(1)
    for name in ("a.png", "a.jpg"):
        named = type(pictures)(**{**vars(pictures), "names": [name]})
        if name == "a.png":
            _, sources = read_sources(str(tmp_path / "sources"), named, tmp_path / "work")
            assert sources.pixels[0, 1].max() == 0  # the first one written
        else:
            with pytest.raises(DataError, match="`a.jpg` has 2 sources in .*, `a.png` and `a.webp`: keep one of them"):
                read_sources(str(tmp_path / "sources"), named, tmp_path / "work")
