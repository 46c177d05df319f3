"""One command, one report: speed, memory, start-up and quality beside the peers, as results/report.md and report.png.

    PYTHONPATH=PEERS python benchmarks/report.py --source "torchvision://FashionMNIST?root=DIR"   # measures, hours
    PYTHONPATH=PEERS python benchmarks/report.py --only footprint
    python benchmarks/report.py --collect                                                          # only collects

Peers are x-transformers, muse-maskgit-pytorch and diffusers (`pip install 'maskimg[bench]'`, or with `--no-deps` into a
directory of their own); what cannot be imported is reported as missing. Quality needs pictures: without `--source` it
is left as it was last measured. The plot needs matplotlib.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
OURS = "maskimg"
LIBRARIES = (OURS, "x-transformers", "muse-maskgit-pytorch", "diffusers")
COLOURS = dict(zip(LIBRARIES, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True))
FORMS = ("fp32", "bf16", "out of the box")
FURTHER = (
    ("quality-per-forward.md", "quality of the bundled model against forward passes"),
    ("known-distributions.md", "samplers where the truth is known"),
    ("tokenizers.md", "quantizers, strides and codebook sizes"),
    ("generator-cpu.md", "every row of the generator's speed, and what was compared"),
    ("step-overhead.md", "the bare training step beside the whole loop"),
    ("loading.md", "what loading costs beside a step"),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """What one command measures: `found` is the file that it writes, `write` makes sections of what is in it."""

    script: str
    found: str
    write: Callable[[dict], list[str]]

    @property
    def command(self) -> str:
        return f"python benchmarks/{self.script}"


@dataclasses.dataclass(frozen=True)
class Bars:
    """One panel: label -> value, and the smallest and largest where it was measured several times."""

    title: str
    values: dict[str, tuple[float, float, float]]


# Speed.


def library_of(name: str) -> str:
    """`x-transformers, torch.compile` -> `x-transformers`"""
    return re.split(r"[ ,]", name)[0]


def fastest(table: dict, library: str) -> dict | None:
    """The fastest row of a library that does the same work as the others; Muon is a choice of ours alone."""
    rows = [row for row in table["rows"] if library_of(row["name"]) == library and "missing" not in row]
    return min((row for row in rows if "Muon" not in row["name"]), key=lambda row: row["median_s"], default=None)


def base_of(table: dict) -> str:
    """Our row that times are divided by: the fastest of those that the others were compared with in each round."""
    compared = {name for row in table["rows"] for name in row.get("ratios", {})}
    ours = [row for row in table["rows"] if row["name"] in compared and "missing" not in row]
    return min(ours, key=lambda row: row["median_s"])["name"]


def advantage(table: dict) -> tuple[float, str]:
    """How many times as long the best peer takes as we do, and which it is."""
    base = base_of(table)
    peers = [row for row in table["rows"] if library_of(row["name"]) != OURS and "missing" not in row]
    return min((row["ratios"][base], row["name"]) for row in peers)


def speed_table(tables: dict[str, dict], unit: str) -> list[str]:
    """A row for each library, a column for each form: its fastest row's rate, and its time as a multiple of ours."""
    forms = [form for form in FORMS if form in tables]
    lines = [f"| {unit} (time / ours) | {' | '.join(forms)} |", "| --- |" + " --- |" * len(forms)]
    for library in LIBRARIES:
        cells = []
        for form in forms:
            row = fastest(tables[form], library)
            ratio = "" if library == OURS or row is None else f" ({row['ratios'][base_of(tables[form])]:.2f})"
            cells.append("missing" if row is None else f"{row['images_per_s']:.3g}{ratio}")
        lines.append(f"| {library} | {' | '.join(cells)} |")
    return lines


def tables_of(found: dict, kind: str) -> dict[str, dict]:
    """Form -> table."""
    return {table["form"]: table for table in found["tables"] if table["kind"] == kind}


def speed_sections(found: dict) -> list[str]:
    size = found["size"]
    lines = []
    for kind, words in (("training", "Training steps"), ("sampling", f"Sampling in {size['steps']} steps")):
        tables = tables_of(found, kind)
        if not tables:
            continue
        lines += [f"## {words}", ""]
        for form, table in tables.items():
            lines += [f"{form}: {source(found | table.get('measured', {}))}", ""]
        lines += [
            f"{size['side']}x{size['side']} tokens of {size['codes']:,} codes, width {size['width']}, depth "
            f"{size['depth']}, batch {size['batch']}; each library's fastest way, compiled or not. `out of the box`: "
            "as its own documentation uses it.",
            "",
        ]
        lines += [*speed_table(tables, "images/s"), ""]
    return lines


# Tokenizer, memory, start-up.


def tokenizer_sections(found: dict) -> list[str]:
    lines = ["## Tokenizer", "", source(found | {"command": "python benchmarks/image_tokenizers.py speed"}), ""]
    lines += [f"{found['size']} pixels, batch {found['batch']}, bf16, as many parameters.", ""]
    lines += [
        "| | million parameters | encoded a second | decoded a second | MB added |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        figures = (row["encode_per_second"], row["decode_per_second"], row["peak_megabytes"])
        cells = [f"{row['parameters_million']:.2f}", *(f"{figure:.0f}" for figure in figures)]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return [*lines, ""]


def footprint_sections(found: dict) -> list[str]:
    lines = ["## Memory", "", source(found), ""]
    lines += ["Peak of a process in MB (`ru_maxrss`), fp32 with AdamW, at the sizes of the generator's speed.", ""]
    lines += ["| | model built | training step | sampling |", "| --- | --- | --- | --- |"]
    for row in found["memory"]:
        cells = missing(row, 3) or [f"{row[kind]:,.0f}" for kind in ("built", "training", "sampling")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    lines += ["", "## Start-up", "", source(found), ""]
    lines += [f"Fresh processes, medians of {found['rounds']}.", ""]
    lines += ["| | seconds of the processor | by the clock |", "| --- | --- | --- |"]
    for row in found["starts"]:
        cells = missing(row, 2) or [f"{row['processor_s']:.2f}", f"{row['clock_s']:.2f}"]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return [*lines, ""]


def missing(row: dict, cells: int) -> list[str]:
    return [f"missing: {row['missing']}", *[""] * (cells - 1)] if "missing" in row else []


# Quality.


def quality_sections(found: dict) -> list[str]:
    from peer_quality import OURS, THEIRS, cell_table, spread, verdicts

    about = found["about"]
    lines = ["## Quality at equal data, parameters and processor time", "", source(found), ""]
    lines += [
        f"Codes of {about['source']}, no labels, {about['minutes']:g} minutes of one core a training, "
        f"{about['samples']:,} samples a cell. Fréchet distance to held-out pictures in the features of our own "
        "classifier (no FID), the mean over three seeds (smallest to largest). x-transformers' loss is mended, or it "
        "would not learn: [what it was given](peer-quality.md).",
        "",
        cell_table(found),
        "",
    ]
    lines += [f"{name[0].upper()}{name[1:]}: {value:.2f}." for name, value in found["floors"].items()]
    if spread(found, OURS, OURS) and spread(found, THEIRS, THEIRS):
        lines += verdicts(found)
    return [*lines, ""]


# The report.

PARTS = {
    "quality": Part("peer_quality.py", "peer-quality.json", quality_sections),
    "generator": Part("generator.py", "generator-cpu.json", speed_sections),
    "tokenizer": Part("image_tokenizers.py speed", "tokenizers-speed.json", tokenizer_sections),
    "footprint": Part("footprint.py", "footprint.json", footprint_sections),
}


def source(found: dict) -> str:
    """The command, the date and the kind of machine of a table."""
    known = found.get("versions") or {"torch": found.get("torch", "?")}
    threads = f", {found['threads']} threads" if "threads" in found else ""
    packages = ", ".join(f"{name} {version}" for name, version in known.items())
    return f"`{found['command']}`, {found['date']}; {found['machine'].replace('_', '-')}{threads}; {packages}."


def read(results: Path) -> dict[str, dict]:
    """What there is, by the name of its part."""
    paths = {name: results / part.found for name, part in PARTS.items()}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def document(found: dict[str, dict], results: Path) -> str:
    lines = [
        "# Quality and speed",
        "",
        "Written by `python benchmarks/report.py --collect` from what the commands below have measured. Machines are "
        "shared and noisy: ratios within a table say more than its figures.",
        "",
        "![all figures](report.png)",
        "",
    ]
    for name, part in PARTS.items():
        lines += part.write(found[name]) if name in found else [f"`{part.command}` has not been run here.", ""]
    lines += ["## Further", ""]
    lines += [f"- [{words}]({name})" for name, words in FURTHER if (results / name).exists()]
    return "\n".join(lines) + "\n"


def panels(found: dict[str, dict]) -> list[Bars]:
    """What the plot shows, longer bars first where longer is better."""
    shown = []
    if "quality" in found:
        from peer_quality import PARTIES, spread

        cells = {
            f"{trained} drawn by {sampled}": spread(found["quality"], trained, sampled)
            for trained in PARTIES
            for sampled in PARTIES
        }
        values = {name: (sum(some) / len(some), min(some), max(some)) for name, some in cells.items() if some}
        shown.append(Bars("Fréchet distance of samples (shorter is better)", values))
    for kind in ("training", "sampling") if "generator" in found else ():
        for form, table in tables_of(found["generator"], kind).items():
            rows = {library: fastest(table, library) for library in LIBRARIES}
            values = {library: same(row["images_per_s"]) for library, row in rows.items() if row}
            shown.append(Bars(f"{kind}, {form}: images a second", values))
    if "tokenizer" in found:
        values = {row["name"]: same(row["decode_per_second"]) for row in found["tokenizer"]["rows"]}
        shown.append(Bars("tokenizer: pictures decoded a second", values))
    if "footprint" in found:
        rows = [row for row in found["footprint"]["memory"] if "missing" not in row]
        shown.append(
            Bars("peak MB of a training step (shorter is better)", {r["name"]: same(r["training"]) for r in rows})
        )
        rows = [row for row in found["footprint"]["starts"] if "missing" not in row]
        values = {row["name"]: same(row["processor_s"]) for row in rows}
        shown.append(Bars("start-up, processor seconds (shorter is better)", values))
    return shown


def same(value: float) -> tuple[float, float, float]:
    """Measured once."""
    return value, value, value


def plot(shown: list[Bars], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    figure, axes = pyplot.subplots(
        -(-len(shown) // columns), columns, figsize=(15, 2.3 * -(-len(shown) // columns)), constrained_layout=True
    )
    every: list[Any] = list(axes.flat)
    for panel, bars in zip(every, shown, strict=False):
        names = list(bars.values)[::-1]
        middle, low, high = zip(*(bars.values[name] for name in names), strict=True)
        errors = [[m - each for m, each in zip(middle, low, strict=True)],
                  [each - m for m, each in zip(middle, high, strict=True)]]  # fmt: skip
        colours = [COLOURS.get(library_of(name).rstrip(":"), "#9aa3ad") for name in names]
        panel.barh(names, middle, color=colours, xerr=errors if low != high else None)
        panel.set_title(bars.title, fontsize=9)
        panel.tick_params(labelsize=8)
    for panel in every[len(shown) :]:
        panel.axis("off")
    figure.savefig(path, dpi=90)


def run(names: list[str], pictures: str | None, work: Path, results: Path) -> list[str]:
    """Run the parts' commands one after the other -> those that failed."""
    failed = []
    for name in names:
        command = [sys.executable, *f"{HERE / PARTS[name].script}".split()]
        if name == "quality":
            if pictures is None:
                print("quality is not measured: give --source", file=sys.stderr)
                continue
            command += [pictures, str(work)]
        command += ["--out", str(results / PARTS[name].found)] if name == "tokenizer" else ["--results", str(results)]
        if subprocess.run(command).returncode:
            failed.append(PARTS[name].command)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true", help="measure nothing")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure only these")
    parser.add_argument("--source", help="pictures for the quality, as `maskimg train` takes them")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="directory for what the quality trains")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()

    failed = [] if given.collect else run(given.only, given.source, given.work, given.results)
    found = read(given.results)
    if not found:
        parser.error(f"`{given.results}` holds no results: run without --collect")
    (given.results / "report.md").write_text(document(found, given.results), encoding="utf-8")
    try:
        plot(panels(found), given.results / "report.png")
    except ImportError:
        print("the plot needs `pip install matplotlib`; report.md is written", file=sys.stderr)
    if failed:
        raise SystemExit(f"these failed, and their tables are as before: {', '.join(failed)}")


if __name__ == "__main__":
    main()
