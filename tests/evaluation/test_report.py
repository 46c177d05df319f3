"""The benchmarks beside peers: equal parameters, the four cells, and the one report. No peer is needed but one."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_net

from maskimg.data.pictures import Pictures
from maskimg.maskgit import MaskGit
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.training.loop import run as training_run
from maskimg.training.loop.run import Budget, Run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import footprint
import peer_quality
import report
from peer_quality import OURS, THEIRS

ABOUT = {"source": "Pictures", "grid": [8, 8], "vocab_size": 256, "minutes": 2.0, "tune_minutes": 0.2, "samples": 10}
MADE = {
    "command": "python benchmarks/x.py",
    "date": "2026-11-22",
    "machine": "x86-64 CPU, 2 cores",
    "versions": {"torch": "2.15"},
}


def quality(**distances: list[float]) -> dict:
    """Rows of a measurement; `ot`: the distance of each seed for weights of ours drawn by their sampler, and so on."""
    party = {"o": OURS, "t": THEIRS}
    cells = {
        f"{party[cell[0]]}, {party[cell[1]]}, {seed}": {"frechet_distance": value, "distinct": 10, "seconds": 1.0}
        for cell, values in distances.items()
        for seed, value in enumerate(values)
    }
    return MADE | {"about": ABOUT, "tuning": {}, "training": {}, "cells": cells, "floors": {"real pictures": 0.5}}


def speed(form: str, **rows: tuple[float, float]) -> dict:
    """A table of the generator's speed; seconds and the ratio to ours, by the row's name."""
    names = {"x": "x-transformers, torch.compile", "d": "diffusers UVit2DModel", "slow": "x-transformers"}
    return {
        "kind": "training",
        "form": form,
        "rows": [
            {
                "name": names.get(name, name),
                "median_s": seconds,
                "images_per_s": 16 / seconds,
                "ratios": {"maskimg": ratio},
            }
            for name, (seconds, ratio) in rows.items()
        ],
    }


# ----------------------------------------------------------------------------- equal parameters, equal time


def test_the_width_with_the_nearest_count_is_taken():
    assert peer_quality.matched(1000, lambda width: 100 * width, range(1, 20)) == 10
    assert peer_quality.matched(1012, lambda width: 100 * width, range(1, 20)) == 10


def test_parameters_that_cannot_be_matched_are_refused():
    with pytest.raises(ValueError, match="no width has about 1000 parameters; the nearest, 3, has 900"):
        peer_quality.matched(1000, lambda width: 300 * width, range(1, 20))


@pytest.mark.parametrize("codes", [64, 1000])
def test_both_networks_have_as_many_parameters(codes):
    config = TransformerConfig(codes, (8, 8), dim=64, depth=2, heads=1)
    ours, theirs = MaskedTransformer(config), peer_quality.their_net(config)
    assert peer_quality.parameters(theirs) == pytest.approx(peer_quality.parameters(ours), rel=0.02)
    assert next(theirs.parameters()).device.type == "cpu"


def test_a_budget_of_processor_time_does_not_count_sleep(tmp_path, monkeypatch):
    import time

    naps = []
    with peer_quality.processor_clock():
        run = Run(tmp_path, Budget(steps=3), stage="generator", identity={})
        run.restore(model=torch.nn.Linear(1, 1))
        for _ in run.steps():
            time.sleep(0.2)
            naps.append(0.2)
    assert run.seconds < sum(naps)
    assert training_run.time is time  # the clock of everyone else is as it was


def test_our_network_in_their_face_says_the_same():
    net = tiny_net().eval()
    h, w = net.grid
    codes = torch.randint(0, net.vocab_size + 1, (2, h, w), generator=torch.Generator().manual_seed(0))
    flat = peer_quality.AsTheirs(net)(codes.flatten(1))
    assert torch.equal(flat.reshape(2, h, w, -1), net(codes))


@pytest.mark.parametrize("sampler", [OURS, THEIRS])
@pytest.mark.parametrize("trained", [OURS, THEIRS])
def test_all_four_cells_draw_whole_grids_the_same_ones_for_the_same_seed(trained, sampler):
    config = TransformerConfig(16, (2, 4), dim=64, depth=1, heads=1)
    net = MaskedTransformer(config) if trained == OURS else peer_quality.their_net(config)
    model = peer_quality.as_ours(net, config) if trained == THEIRS else MaskGit(net)
    codes, again, other = (peer_quality.draw(model, config, sampler, 5, seed) for seed in (1, 1, 2))
    assert codes.shape == (5, 2, 4) and codes.min() >= 0 and codes.max() < 16
    assert torch.equal(codes, again)
    assert not torch.equal(codes, other)


@pytest.mark.parametrize("loss", peer_quality.LOSSES)
def test_their_loss_as_it_is_worked_around_is_positive(loss):
    """As it comes it is negative. -log p of untrained draws: about log 16."""
    config = TransformerConfig(16, (2, 4), dim=64, depth=1, heads=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = peer_quality.their_net(config)
        model = peer_quality.wrapped(net, config, loss)
        value = model(torch.randint(0, 16, (8, 8))).loss
    assert peer_quality.sign_of(loss) * value > 0


# ----------------------------------------------------------------------------- choosing, keeping, telling


def test_each_party_takes_its_own_best_setting():
    tuning = {each.name: {"bits_per_token": 5.0} for each in peer_quality.settings()}
    mine, yours = peer_quality.settings()[1], peer_quality.settings()[-2]
    tuning[mine.name]["bits_per_token"], tuning[yours.name]["bits_per_token"] = 4.0, 3.0
    assert peer_quality.chosen(tuning, OURS) == mine
    assert peer_quality.chosen(tuning, THEIRS) == yours


def test_what_was_measured_is_kept_and_not_mixed_with_other_settings(tmp_path):
    peer_quality.Rows(tmp_path, {"minutes": 1}).add("cells", "maskimg, maskimg, 0", {"distance": 1.23456, "n": 3})
    again = peer_quality.Rows(tmp_path, {"minutes": 1})
    assert again.has("cells", "maskimg, maskimg, 0") and not again.has("cells", "maskimg, maskimg, 1")
    assert again.all() == {
        "about": {"minutes": 1},
        "tuning": {},
        "training": {},
        "cells": {"maskimg, maskimg, 0": {"distance": 1.2346, "n": 3}},
    }
    with pytest.raises(SystemExit, match="give another directory"):
        peer_quality.Rows(tmp_path, {"minutes": 2})


def test_few_pictures_are_spread_over_the_training_part_and_keep_all_held_out_ones():
    held_out = torch.arange(20) % 4 == 3
    names = [f"{i}" for i in range(20)]
    pictures = Pictures(torch.arange(20)[:, None], torch.arange(20)[:, None], {"class": names}, held_out, names, "x")
    few = peer_quality.few(pictures, 3)
    assert few.names == ["0", "9", "18", "3", "7", "11", "15", "19"]
    assert few.pixels[:, 0].tolist() == few.labels[:, 0].tolist() == [int(name) for name in few.names]
    assert few.held_out.tolist() == [False] * 3 + [True] * 5
    assert few.fingerprint != pictures.fingerprint  # other codes must not be taken for these
    assert len(peer_quality.few(pictures, 100).names) == 20


def test_the_table_gives_the_mean_and_the_spread_of_each_cell():
    rows = quality(oo=[1, 2, 3], ot=[4], tt=[8, 9, 10])
    *_, ours, theirs = peer_quality.cell_table(rows).splitlines()
    assert ours == "| maskimg | 2.00 (1.00 to 3.00) | 4.00 (4.00 to 4.00) |"
    assert theirs == "| x-transformers | not measured | 9.00 (8.00 to 10.00) |"


def test_the_verdict_compares_means_and_our_worst_seed_with_their_best():
    as_it_comes, with_ours = peer_quality.verdicts(quality(oo=[1, 2, 3], to=[2, 4, 6], tt=[8, 10, 12]))
    assert "0.20 of x-transformers' as it comes; 0.38" in as_it_comes  # 2 / 10, 3 / 8
    assert "0.50 of x-transformers' with our sampler; 1.50" in with_ours  # 2 / 4, 3 / 2


# ----------------------------------------------------------------------------- the report


def test_the_report_compares_with_each_library_at_its_fastest():
    tables = {"fp32": speed("fp32", maskimg=(2, 1), slow=(5, 2.5), x=(3, 1.4), d=(4, 2))}
    *_, ours, x, muse, diffusers = report.speed_table(tables, "images/s")
    assert (ours, x) == ("| maskimg | 8 |", "| x-transformers | 5.33 (1.40) |")
    assert (muse, diffusers) == ("| muse-maskgit-pytorch | missing |", "| diffusers | 4 (2.00) |")
    assert report.advantage(tables["fp32"]) == (1.4, "x-transformers, torch.compile")


def test_the_report_says_what_was_not_run(tmp_path):
    text = report.document({}, tmp_path)
    for part in report.PARTS.values():
        assert f"`{part.command}` has not been run here." in text


def test_every_section_has_its_command_its_date_and_its_machine(tmp_path):
    size = {"side": 16, "codes": 1024, "width": 512, "depth": 8, "batch": 16, "steps": 18}
    taken = {"name": "import maskimg", "processor_s": 0.1, "clock_s": 0.2}
    lost = {"name": "diffusers", "missing": "No module named 'diffusers'"}
    grown = {"name": "maskimg", "built": 500.0, "training": 2000.0, "sampling": 900.0}
    found = {
        "quality": quality(oo=[1], ot=[1], to=[1], tt=[1]),
        "generator": MADE | {"size": size, "tables": [speed("fp32", maskimg=(2, 1), x=(3, 1.4))]},
        "footprint": MADE | {"rounds": 5, "starts": [taken, lost], "memory": [grown, lost]},
    }
    for name, part in report.PARTS.items():
        if name in found:
            (tmp_path / part.found).write_text(json.dumps(found[name]))
    read = report.read(tmp_path)
    assert read == found
    text = report.document(read, tmp_path)
    for title in ("Quality at equal data", "Training steps", "Memory", "Start-up"):
        section = text.split(f"## {title}")[1].split("## ")[0]
        assert "`python benchmarks/x.py`, 2026-11-22; x86-64 CPU, 2 cores; torch 2.15." in section
    assert "| maskimg | 500 | 2,000 | 900 |" in text
    assert "| diffusers | missing: No module named 'diffusers' |  |  |" in text
    assert {bars.title.split(" ")[0] for bars in report.panels(read)} == {"Fréchet", "training,", "peak", "start-up,"}


def test_the_reports_that_are_kept_can_be_collected():
    found = report.read(report.RESULTS)
    assert {"generator", "tokenizer"} <= set(found)
    assert "has not been run" not in "".join(line for name in found for line in report.PARTS[name].write(found[name]))
    assert all(bars.values for bars in report.panels(found))


def test_a_start_is_timed_and_a_failing_one_says_why():
    taken = footprint.start(("-c", "pass"))
    assert isinstance(taken, dict) and taken["clock"] > 0
    assert footprint.start(("-c", "import no_such_thing")) == "ModuleNotFoundError: No module named 'no_such_thing'"


def test_a_start_is_the_median_of_its_rounds_or_missing():
    rounds = [{"clock": float(i), "processor": i / 2} for i in (1, 9, 2)]
    assert footprint.start_row("a", rounds) == {"name": "a", "clock_s": 2.0, "processor_s": 1.0}
    assert footprint.start_row("a", [*rounds, "why"]) == {"name": "a", "missing": "why"}
