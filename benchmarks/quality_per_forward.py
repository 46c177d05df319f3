"""Quality of emoji-64 against forward passes, for each order, with and without critic and guidance.

    python benchmarks/quality_per_forward.py runs/emoji            # measure, table and plot (hours on two cores)
    python benchmarks/quality_per_forward.py runs/emoji --only fast --count 3360 --first-seed 100000

`runs/emoji` is what `emoji_64.py prepare` made. Quality is the class accuracy and the Fréchet distance in the features
of a classifier trained on the same pictures: good for comparing rows, comparable with nothing outside. Forward passes
are of the generator, counted per picture, those with guidance twice; the critic's own (2 blocks to the generator's 7)
are counted by their share. A row that is there already is not measured again.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from emoji_64 import RESULTS, judge_of, read, record, sampling_figures

from maskimg.evaluation.tune import passes
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler

NAME = "quality-per-forward"
STEPS = (4, 6, 8, 12, 18, 32)
GUIDANCE = 3.0
BASE = Sampler(choice_temperature=4.5)


def samplers() -> dict[str, Sampler]:
    """Every row of the table by its name: the orders at each number of steps, then what their knobs do."""
    rows: dict[str, Sampler] = {}
    orders = {
        "confidence": replace(BASE, order="confidence"),
        "halton": replace(BASE, order="halton"),
        "random": replace(BASE, order="random"),
        "moment": replace(BASE, order="moment"),
        "critic": replace(BASE, order="critic", choice_temperature=2.0),
    }
    for order, sampler in orders.items():
        for steps in STEPS:
            rows[f"{order}, {steps} steps"] = replace(sampler, steps=steps)
            rows[f"{order}, {steps} steps, guided"] = replace(sampler, steps=steps, guidance=GUIDANCE)
    return rows


def measure(folder: Path, model: str, wanted: dict[str, Sampler], count: int, first_seed: int) -> None:
    pictures, pipeline = read(folder), Pipeline.from_pretrained(model)
    judge, _ = judge_of(folder, pictures)
    share = pipeline.critic.config.depth / pipeline.net.config.depth if pipeline.critic else 0.0
    done = json.loads((RESULTS / f"{NAME}.json").read_text()) if (RESULTS / f"{NAME}.json").exists() else {}
    for name, sampler in wanted.items():
        if name in done:
            continue
        figures, _ = sampling_figures(pipeline, judge, pictures, sampler, count, first_seed=first_seed)
        changed = {key: value for key, value in asdict(sampler).items() if value != asdict(Sampler())[key]}
        row = {"forwards": round(passes(sampler, share), 2), "samples": count, **figures, "sampler": changed}
        record(NAME, name, row)


def write_table() -> None:
    """The rows as markdown, cheapest first."""
    rows = json.loads((RESULTS / f"{NAME}.json").read_text())
    lines = ["| sampler | forwards | samples | class accuracy | Fréchet distance |", "| --- | --- | --- | --- | --- |"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["forwards"]):
        figures = f"{row['accuracy']:.1%} | {row['frechet_distance']:.2f}"
        lines.append(f"| {name} | {row['forwards']:g} | {row['samples']} | {figures} |")
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def plot() -> None:
    """Two panels over forward passes; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = json.loads((RESULTS / f"{NAME}.json").read_text())
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    colours = dict(
        zip(("confidence", "halton", "random", "moment", "critic"), pyplot.get_cmap("tab10").colors, strict=False)
    )
    for order, colour in colours.items():
        for guided, style in ((False, "--"), (True, "-")):
            end = ", guided" if guided else ""
            points = [rows[name] for steps in STEPS if (name := f"{order}, {steps} steps{end}") in rows]
            for panel, key in zip(panels, ("accuracy", "frechet_distance"), strict=True):
                panel.plot(
                    [point["forwards"] for point in points],
                    [point[key] for point in points],
                    style, color=colour, marker="o", markersize=3, label=order if guided else None,
                )  # fmt: skip
    for preset in ("fast", "balanced", "best"):
        if f"preset {preset}" in rows:
            row = rows[f"preset {preset}"]
            for panel, key in zip(panels, ("accuracy", "frechet_distance"), strict=True):
                panel.plot(row["forwards"], row[key], "*", color="black", markersize=11)
                panel.annotate(preset, (row["forwards"], row[key]), xytext=(5, 5), textcoords="offset points")
    panels[0].set(xlabel="forward passes a picture", ylabel="class accuracy", xscale="log")
    panels[1].set(xlabel="forward passes a picture", ylabel="Fréchet distance (own features)", xscale="log")
    for panel in panels:
        panel.minorticks_off()
        panel.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
        panel.grid(alpha=0.3)
    panels[0].legend(title="order (dashed: no guidance)")
    figure.savefig(RESULTS / f"{NAME}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="emoji-64")
    parser.add_argument("--only", default="", help="part of the rows' names; `presets` for the model's own presets")
    parser.add_argument("--count", type=int, default=840)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--add", action="append", default=[], help="a further row, NAME={json of a Sampler}")
    given = parser.parse_args()
    rows = {name: sampler for name, sampler in samplers().items() if given.only in name}
    if given.only == "presets":
        rows = {f"preset {name}": each for name, each in Pipeline.from_pretrained(given.model).presets.items()}
    for text in given.add:
        name, numbers = text.split("=", 1)
        rows[name] = Sampler(**json.loads(numbers))
    measure(given.folder, given.model, rows, given.count, given.first_seed)
    write_table()
    plot()


if __name__ == "__main__":
    main()
