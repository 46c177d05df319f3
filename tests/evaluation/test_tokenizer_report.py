"""The judge, and what is measured of a tokenizer: right on cases where the answer is known."""

import dataclasses
import math
import re
import sys
import types

import pytest
import torch
from einops import rearrange, reduce, repeat
from helpers import tiny_pictures
from tiny import TOKENIZER
from torch import nn

from maskimg.data.pictures import Pictures
from maskimg.evaluation.judge import judge_for, train_judge
from maskimg.evaluation.metrics import frechet_distance
from maskimg.evaluation.outside import NotMeasured, load_inception, load_lpips
from maskimg.evaluation.tokenizer_report import evaluate_tokenizer, reconstruction_sheet, summary
from vqgan import Tokenizer
from vqgan.images import normalize


def test_a_judge_tells_dark_pictures_from_bright_ones_and_is_the_same_for_the_same_seed():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    noise = torch.randint(0, 40, (24, 3, 8, 8), generator=generator)
    pixels = (noise + 200 * labels[:, None, None, None]).to(torch.uint8)
    before = torch.random.get_rng_state()

    judge, again = (train_judge(pixels, labels, 2, 15) for _ in range(2))

    assert judge.accuracy(pixels, labels) == 1.0
    features = judge.features(pixels)
    assert features.shape == (24, 128)
    assert features.dtype == torch.float32
    assert torch.equal(features, again.features(pixels))
    assert torch.equal(torch.random.get_rng_state(), before)


# ----------------------------------------------------------------------------- a tokenizer's report


class Greys(nn.Module):
    """A tokenizer whose code is the mean grey of a block of 4x4 pixels: exact for pictures made of such blocks."""

    stride = 4

    def __init__(self, vocab_size: int = 256):
        super().__init__()
        self.vocab_size = vocab_size
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        grey = reduce(images, "b c (h i) (w j) -> b h w", "mean", i=4, j=4)
        return ((grey + 1) / 2 * (self.vocab_size - 1)).round().long().clamp(0, self.vocab_size - 1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        grey = codes.float() / max(1, self.vocab_size - 1) * 2 - 1
        return repeat(grey, "b h w -> b c (h i) (w j)", c=3, i=4, j=4)


def block_pictures(count: int = 20, *, held_out: int = 8, h: int = 4, w: int = 4, seed: int = 0) -> Pictures:
    """Grey pictures of h x w blocks of 4x4 pixels, their class the half of the scale that they are in."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) % 2
    greys = torch.randint(0, 128, (count, h, w), generator=generator) + 128 * kinds[:, None, None]
    pixels = repeat(greys.to(torch.uint8), "n h w -> n c (h i) (w j)", c=3, i=4, j=4).contiguous()
    unseen = torch.arange(count) >= count - held_out
    return Pictures(pixels, kinds[:, None], {"tone": ["dark", "light"]}, unseen, [str(i) for i in range(count)], "made")


def test_a_tokenizer_that_loses_nothing_is_measured_as_one():
    pictures = block_pictures()
    judge = judge_for(pictures, 12)

    report = evaluate_tokenizer(Greys(), pictures, judge=judge)

    assert (report.pictures, report.size, report.grid, report.vocab_size) == (8, (16, 16), (4, 4), 256)
    assert report.psnr_db == pytest.approx(report.psnr_worst_db) and report.psnr_db > 90
    assert report.ssim == pytest.approx(1)
    assert report.frechet_distance == pytest.approx(0, abs=1e-5)
    assert report.frechet_floor is not None and report.frechet_floor > 1e-3
    assert report.accuracy_real == report.accuracy_reconstructed == 1
    assert report.accuracy_kept == 1
    assert report.bits_per_picture == 16 * 8
    assert report.entropy_bits_per_picture == pytest.approx(16 * report.entropy_bits)
    assert report.codes_counted == 12 * 16  # of the training pictures
    assert report.encode_per_second > 0 and report.decode_per_second > 0


def test_figures_are_those_of_the_held_out_pictures_and_of_all_where_none_is_held_out():
    pictures = block_pictures()
    pixels = pictures.pixels.clone()
    stripes = torch.arange(16) % 2 * 255
    pixels[:12] = stripes.to(torch.uint8)  # of the training part; lost between blocks
    spoilt = dataclasses.replace(pictures, pixels=pixels)
    assert evaluate_tokenizer(Greys(), spoilt).psnr_db > 90
    everything = dataclasses.replace(spoilt, held_out=torch.zeros(20, dtype=torch.bool))
    report = evaluate_tokenizer(Greys(), everything)
    assert report.pictures == 20 and not report.held_out
    assert any("no picture is held out" in warning for warning in report.warnings)
    assert report.psnr_db < 90
    # Black or white, both half of the range from grey: 10 log10(4 / 1), the worst twentieth is one picture of them.
    assert report.psnr_worst_db == pytest.approx(10 * math.log10(4), abs=0.1)


def test_any_size_that_the_stride_divides_is_measured():
    report = evaluate_tokenizer(Tokenizer(TOKENIZER).eval(), block_pictures(h=3, w=7))
    assert (report.size, report.grid) == ((12, 28), (3, 7))
    assert report.bits_per_picture == 21 * 6
    with pytest.raises(ValueError, match="divisible by the stride 4"):
        odd = dataclasses.replace(block_pictures(), pixels=torch.zeros(20, 3, 10, 12, dtype=torch.uint8))
        evaluate_tokenizer(Tokenizer(TOKENIZER).eval(), odd)


def test_no_pictures_are_refused():
    none = block_pictures().part(held_out=True).part(held_out=False)
    with pytest.raises(ValueError, match="there are no pictures to measure"):
        evaluate_tokenizer(Greys(), none)


def test_a_collapsed_tokenizer_is_warned_of_in_words():
    report = evaluate_tokenizer(Greys(1), block_pictures())
    assert report.codes_used == 1 and report.entropy_bits == 0
    assert any("nearly of one colour" in warning for warning in report.warnings)

    class OfTwo(Greys):
        def encode(self, images):
            return super().encode(images) // 128 * 128

    collapsed = evaluate_tokenizer(OfTwo(), block_pictures())
    assert any("only 0.8 % of 256 codes are used" in warning for warning in collapsed.warnings)
    assert "warning: the codebook may have collapsed" in summary(collapsed)
    assert evaluate_tokenizer(Greys(), block_pictures(200)).warnings == ()


def test_few_pictures_and_a_classifier_that_is_mostly_wrong_are_warned_of():
    pictures = block_pictures()
    judge = judge_for(pictures, 12)
    swapped = dataclasses.replace(pictures, labels=1 - pictures.labels)  # so that the judge is always wrong
    report = evaluate_tokenizer(Greys(), swapped, judge=judge)
    assert report.accuracy_real == 0 and report.accuracy_kept is None
    assert report.not_measured["accuracy kept"] == "the classifier recognises none of the pictures themselves"
    assert any("8 pictures are few" in warning for warning in report.warnings)
    assert any("right on only 0% of the originals" in warning for warning in report.warnings)


def test_pictures_without_a_label_are_left_out_of_the_accuracy():
    pictures = block_pictures()
    labels = pictures.labels.clone()
    labels[:2] = labels[12:18] = 2  # the null label, in both parts; no class of the judge's is right there
    pictures = dataclasses.replace(pictures, labels=labels)
    judge = judge_for(pictures, 12)
    assert not isinstance(judge, NotMeasured) and judge.classifier.head.out_features == 2
    report = evaluate_tokenizer(Greys(), pictures, judge=judge)
    assert report.accuracy_real == 1


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({}, 0, "the classifier was left out"),
        ({"fields": {}, "labels": torch.zeros(20, 0, dtype=torch.int64)}, 5, "needs a folder with labels"),
        ({"labels": torch.zeros(20, 1, dtype=torch.int64)}, 5, "two classes or more"),
        ({"pixels": torch.zeros(20, 3, 12, 12, dtype=torch.uint8)}, 5, "multiple of 8"),
    ],
)
def test_where_there_can_be_no_classifier_the_report_says_why_and_goes_on(changes, steps, words):
    pictures = dataclasses.replace(block_pictures(), **changes)
    judge = judge_for(pictures, steps)
    assert isinstance(judge, NotMeasured) and words in judge.reason
    report = evaluate_tokenizer(Greys(), pictures, judge=judge)
    assert report.frechet_distance is report.accuracy_kept is None
    assert report.not_measured["Fréchet distance"] == judge.reason
    assert f"Fréchet distance: not measured: {judge.reason}" in summary(report)


def test_a_folder_with_several_fields_is_judged_by_its_classes():
    judge = judge_for(tiny_pictures(), 2)
    assert not isinstance(judge, NotMeasured)
    assert judge.classifier.head.out_features == 3


def test_the_sheet_shows_originals_reconstructions_and_errors_with_the_worst_first():
    pictures = block_pictures(held_out=3)
    pixels = pictures.pixels.clone()
    pixels[18] = (torch.arange(16) % 2 * 255).to(torch.uint8)
    page = reconstruction_sheet(Greys(), dataclasses.replace(pictures, pixels=pixels), columns=2)
    assert page.size == (2 * 18 + 2, 6 * 18 + 2)
    assert [page.getpixel((2 + x, 2))[0] for x in (0, 1)] == [0, 255]  # the stripes
    assert page.getpixel((2, 2 + 18 + 1))[0] in (127, 128)  # and what became of them
    assert sum(page.getpixel((3, 2 + 36 + 1))) > sum(page.getpixel((2 + 18 + 1, 2 + 36 + 1))) == 0


# ----------------------------------------------------------------------------- other people's networks


class FakeLpips(nn.Module):
    """Has the shapes of `lpips.LPIPS`; its distance is the mean absolute difference."""

    def __init__(self, net: str, verbose: bool):
        super().__init__()
        assert (net, verbose) == ("vgg", False)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return reduce((images - targets).abs(), "b c y x -> b 1 1 1", "mean")


class FakeInception(nn.Module):
    """Has the shapes of torch-fidelity's; its features are the picture in 16 parts, its logits the mean colours."""

    def __init__(self, name: str, features_list: list[str], verbose: bool):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert pixels.dtype == torch.uint8
        parts = reduce(pixels.float(), "b c (h i) (w j) -> b (h w)", "mean", h=4, w=4)
        return parts, reduce(pixels.float(), "b c y x -> b c", "mean")


@pytest.fixture
def other_networks(monkeypatch):
    lpips, inception = types.ModuleType("lpips"), types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    lpips.LPIPS, inception.FeatureExtractorInceptionV3 = FakeLpips, FakeInception
    package = types.ModuleType("torch_fidelity")
    for module in (lpips, package, inception):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return lpips, inception


def test_lpips_and_rfid_are_measured_where_their_networks_are_at_hand(other_networks):
    pictures, cpu = block_pictures(40, held_out=30), torch.device("cpu")
    tokenizer = Greys(4)
    lpips, inception = load_lpips(cpu), load_inception(cpu)

    report = evaluate_tokenizer(tokenizer, pictures, lpips=lpips, inception=inception)

    pixels = pictures.part(held_out=True).pixels
    restored = ((tokenizer.decode(tokenizer.encode(normalize(pixels))) + 1) * 127.5).round()
    assert report.lpips == pytest.approx((restored - pixels.float()).abs().mean().item() / 127.5, rel=1e-4)
    blocks = [rearrange(each[:, 0, ::4, ::4].float(), "n h w -> n (h w)") for each in (restored, pixels)]
    assert report.rfid == pytest.approx(frechet_distance(*blocks), rel=1e-4)
    assert report.rfid > 1
    assert set(report.not_measured) == {"Fréchet distance", "accuracy kept"}
    assert re.search(rf"^LPIPS +{report.lpips:.4f} ", summary(report), re.M)


def test_lpips_needs_pictures_that_vgg_can_halve_four_times(other_networks):
    report = evaluate_tokenizer(Greys(), block_pictures(h=3, w=6), lpips=load_lpips(torch.device("cpu")))
    assert report.lpips is None
    assert report.not_measured["LPIPS"] == "needs pictures of 16 pixels or more"


def test_what_is_not_installed_is_told_with_the_command_that_installs_it(monkeypatch):
    for name in ("lpips", "torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    lpips, inception = load_lpips(torch.device("cpu")), load_inception(torch.device("cpu"))
    assert lpips == NotMeasured("needs `pip install lpips` and an internet connection once")
    assert inception == NotMeasured("needs `pip install torch-fidelity` and an internet connection once")
    report = evaluate_tokenizer(Greys(), block_pictures(), lpips=lpips, inception=inception)
    assert "LPIPS: not measured: needs `pip install lpips` and an internet connection once" in summary(report)
    assert report.psnr_db > 90


def test_weights_that_cannot_be_downloaded_are_told_in_a_sentence(other_networks):
    def fail(*_, **__):
        raise OSError("<urlopen error\n no route to host>")

    other_networks[0].LPIPS = fail
    found = load_lpips(torch.device("cpu"))
    assert found == NotMeasured(
        "the weights of `lpips` cannot be had (<urlopen error no route to host>): it needs an internet connection once"
    )
