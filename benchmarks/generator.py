"""Speed of the generator beside its peers: training steps and 18-step samplings of one size, in one process.

    pip install --no-deps --target PEERS muse-maskgit-pytorch diffusers ...
    PYTHONPATH=PEERS python benchmarks/generator.py      # writes results/generator-DEVICE.json and .md
    ... --only "sampling, bf16"                          # measures one table again, and keeps the others of the file
    python benchmarks/generator.py --small --eager       # toy sizes, seconds; writes nothing without --results

Peers are x-transformers (NonAutoregressiveWrapper), muse-maskgit-pytorch (MaskGit) and diffusers (UVit2DModel with
AmusedScheduler); one that cannot be imported is reported as missing. All have the same grid, vocabulary, width, depth,
heads and batch. What their architectures add (cross-attention in muse and diffusers) stays, and the first table
counts it, so that a reader sees how equal the work is.

In the tables of equal numbers (fp32, bf16) all do the same: plain masked cross-entropy, cosine masking and AdamW in
training; order by confidence, no guidance and no top-k in sampling (muse cannot draw without). bf16 is autocast in
training; in sampling autocast and bf16 weights are both tried while warming up, and the faster is kept, for each.
`out of the box` is each as its own documentation uses it; ours chooses format and optimizers by machine and batch.

Machines are shared and noisy. Every round runs every contestant once, in changing order, with this machine's own
matrix products at these shapes among them; ratios are medians of ratios within a round. Shapes: b images, n tokens.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import random
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from players import (
    SMALL,
    Player,
    Size,
    adam_clipped,
    adamw,
    maskimg,
    maskimg_pipeline,
    muon_adamw,
    muse,
    training_run,
    uvit,
    x_transformers,
)
from torch.utils.flop_counter import FlopCounterMode

from maskimg.hardware import DTYPES, autocast, pick_device, pick_dtype

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("x-transformers", "muse-maskgit-pytorch", "diffusers")
KINDS = ("training", "sampling", "one image")  # one image: latency, sampling at batch 1
FORMS = ("fp32", "bf16", "out of the box")
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PROGRAM = "maskimg sample, hundreds"  # as the command draws so many that it compiles by itself
OURS = ("maskimg", "maskimg, compiled", PROGRAM)  # what the others are compared with, where a table has them


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run a player; `weights` converts them to the dtype, else it is autocast."""

    build: Callable[[Size, torch.device], Player]
    dtype: torch.dtype = torch.float32
    weights: bool = False


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A row of a table. Of several ways, the one that is fastest while warming up is measured, and named."""

    name: str
    ways: dict[str, Way]
    compiled: bool = False
    optimizer: Callable[[Any], Callable[[torch.Tensor], None]] | None = None


@dataclasses.dataclass
class Contestant:
    """An entrant that is ready to run."""

    work: Callable[[], object]
    way: str
    dtype: torch.dtype
    flops: float
    tried: dict[str, str]  # what became of each way: seconds of a short trial, or why it fails
    preparation: float = 0.0  # seconds of building, compiling and warming up


# The tables.


def entrants(kind: str, form: str, size: Size, device: torch.device, *, eager: bool = False) -> list[Entrant]:
    """The rows of the table of a kind and form; `eager` leaves out what is compiled."""
    build = functools.partial
    if form == "out of the box":
        fast = pick_dtype("auto", device)
        ours = build(maskimg, equal=False)
        x, m = build(x_transformers, equal=False), build(muse, equal=False)
        name = NAMES[fast]
        if kind == "training":
            how = f"{name}, {'eager' if eager else 'compile_blocks'}, its own optimizers, EMA"
            run = build(training_run, size.batch)
            return [
                Entrant("maskimg", {how: Way(ours, fast)}, not eager, run),
                Entrant("x-transformers", {"fp32, Adam": Way(x)}, optimizer=adam_clipped),
                Entrant("muse-maskgit-pytorch", {"fp32, Adam": Way(m)}, optimizer=adam_clipped),
                Entrant("diffusers UVit2DModel", {"fp32, AdamW": Way(build(uvit))}, optimizer=adamw),
            ]
        pipeline = build(maskimg_pipeline, dtype=fast)
        rows = [
            Entrant("maskimg", {f"{name} weights, halton": Way(ours, fast, weights=True)}),
            Entrant(
                "maskimg, compiled", {f"{name} weights, halton, compile_blocks": Way(ours, fast, weights=True)}, True
            ),
            Entrant("maskimg, Pipeline", {f"{name} weights, halton": Way(pipeline, fast, weights=True)}),
            Entrant(
                PROGRAM,
                {f"{name} weights, halton, compile_blocks": Way(pipeline, fast, weights=True)},
                True,
            ),
            Entrant("x-transformers", {"fp32": Way(x)}),
            Entrant("muse-maskgit-pytorch", {"fp32, guided": Way(m)}),
            Entrant("diffusers UVit2DModel", {"fp32": Way(build(uvit))}),
        ]
        rows = [row for row in rows if not (eager and row.compiled)]
        return [row for row in rows if kind == "sampling" or row.name not in ("maskimg, Pipeline", PROGRAM)]

    def ways(**builds: Callable[[Size, torch.device], Player]) -> dict[str, Way]:
        found: dict[str, Way] = {}
        for note, build in builds.items():
            if form == "fp32":
                found[note] = Way(build)
            elif kind == "training":
                found[note] = Way(build, torch.bfloat16)
            else:
                found[f"{note}, autocast"] = Way(build, torch.bfloat16)
                found[f"{note}, bf16 weights"] = Way(build, torch.bfloat16, weights=True)
        return found

    ours, x = build(maskimg), build(x_transformers)
    flash = build(x_transformers, flash=True)
    attention = {"flash=False": build(muse, flash=False), "flash=True": build(muse, flash=True)}
    rows = [
        Entrant("maskimg", ways(eager=ours), optimizer=adamw),
        Entrant("maskimg, compiled", ways(compile_blocks=ours), True, adamw),
        Entrant("maskimg, compiled, Muon + AdamW", ways(compile_blocks=ours), True, muon_adamw),
        Entrant("x-transformers", ways(eager=x), optimizer=adamw),
        Entrant("x-transformers, attn_flash", ways(eager=flash), optimizer=adamw),
        Entrant("x-transformers, torch.compile", ways(attn_flash=flash, plain=x), True, adamw),
        Entrant("muse-maskgit-pytorch", ways(**attention), optimizer=adamw),
        Entrant("diffusers UVit2DModel", ways(eager=build(uvit)), optimizer=adamw),
        Entrant("diffusers, torch.compile", ways(compiled=build(uvit)), True, adamw),
    ]
    return [row for row in rows if (kind == "training" or "Muon" not in row.name) and not (eager and row.compiled)]


class Bench:
    """Builds, warms up, counts and times; remembers what was counted."""

    def __init__(self, size: Size, device: torch.device, rounds: int, *, eager: bool = False):
        self.size, self.device, self.rounds, self.eager = size, device, rounds, eager
        self.codes = torch.randint(size.codes, (size.batch, size.side, size.side), device=device)
        self.counted: dict[tuple, float] = {}

    def work_table(self) -> list[dict]:
        """Parameters and FLOPs of one forward pass of each architecture."""
        rows = []
        for name, build in (
            ("maskimg", maskimg),
            ("x-transformers", x_transformers),
            ("muse-maskgit-pytorch", muse),
            ("diffusers UVit2DModel", uvit),
        ):
            try:
                player = quietly(build, self.size, self.device)
            except ImportError as error:
                rows.append({"name": name, "missing": f"missing: {error}"})
                continue
            masked = torch.full_like(self.codes, self.size.codes)
            with torch.no_grad():
                flops = _count(lambda p=player, m=masked: p.logits(m))
            parameters = sum(p.numel() for p in player.net.parameters())
            rows.append({"name": name, "parameters": parameters, "forward_flops": flops})
        return rows

    def table(self, kind: str, form: str) -> dict:
        """Every entrant of a table, warmed up, then timed round by round."""
        batch = 1 if kind == "one image" else self.size.batch
        ready: dict[str, Contestant] = {}
        missing: dict[str, str] = {}
        rivals = entrants(kind, form, self.size, self.device, eager=self.eager)
        for entrant in rivals:
            try:
                ready[entrant.name] = self.prepare(entrant, kind)
            except ImportError as error:
                missing[entrant.name] = f"missing: {error}"
            except RuntimeError as error:
                missing[entrant.name] = f"fails: {error}"
            gc.collect()
            print(f"{kind}, {form}: {entrant.name} ready", file=sys.stderr, flush=True)

        # The machine's own rate is measured like a contestant, in the same rounds.
        products = {
            NAMES[dtype]: matrix_products(dataclasses.replace(self.size, batch=batch), self.device, dtype)
            for dtype in sorted({contestant.dtype for contestant in ready.values()}, key=str)
        }
        jobs: dict[str, Callable[[], object]] = {name: contestant.work for name, contestant in ready.items()}
        jobs |= {name: work for name, (work, _) in products.items()}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for i in range(self.rounds):
            for name in random.Random(i).sample(list(jobs), len(jobs)):
                times[name].append(seconds(jobs[name], self.size.least, self.device))
            print(f"{kind}, {form}: round {i + 1} of {self.rounds}", file=sys.stderr, flush=True)

        rates = {name: flops / statistics.median(times[name]) for name, (_, flops) in products.items()}
        rows = []
        for name in (entrant.name for entrant in rivals):
            if name in missing:
                rows.append({"name": name, "missing": missing[name]})
                continue
            contestant, median = ready[name], statistics.median(times[name])
            rows.append(
                {
                    "name": name,
                    "way": contestant.way,
                    "tried": contestant.tried,
                    "median_s": median,
                    "min_s": min(times[name]),
                    "max_s": max(times[name]),
                    "times_s": times[name],
                    "images_per_s": batch / median,
                    "flops": contestant.flops,
                    "share_of_matrix_rate": contestant.flops / median / rates[NAMES[contestant.dtype]],
                    "preparation_s": contestant.preparation,
                    "ratios": {
                        ours: statistics.median(a / b for a, b in zip(times[name], times[ours], strict=True))
                        for ours in OURS
                        if ours in ready
                    },
                }
            )
        return {"kind": kind, "form": form, "batch": batch, "rows": rows, "matrix_flops_per_s": rates}

    def prepare(self, entrant: Entrant, kind: str) -> Contestant:
        """The fastest way of an entrant, ready to run; raises where none of them runs."""
        started = time.perf_counter()
        best: Contestant | None = None
        least, tried = math.inf, {}
        for note, way in entrant.ways.items():
            try:
                work, trial, flops = quietly(self._ready, entrant, way, kind)
                trial()
                took = min(_once(trial, self.device) for _ in range(2))
            except ImportError:
                raise
            except Exception as error:  # a peer's combination that does not work: another way may
                tried[note] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            tried[note] = f"{took:.3g} s"
            if took < least:
                best, least = Contestant(work, note, way.dtype, flops, tried), took
        if best is None:
            raise RuntimeError("; ".join(tried.values()))
        best.preparation = time.perf_counter() - started
        return best

    def _ready(self, entrant: Entrant, way: Way, kind: str) -> tuple[Callable[[], object], Callable[[], object], float]:
        """The work to time, a shorter one that warms it up, and the work's FLOPs, counted without compiling."""
        player = way.build(self.size, self.device)
        batch = 1 if kind == "one image" else self.size.batch
        if way.weights:
            player.model.to(way.dtype)
        context = functools.partial(autocast, self.device, torch.float32 if way.weights else way.dtype)

        def loss() -> torch.Tensor:
            with context():
                return player.loss(self.codes)

        def draw(steps: int) -> object:
            with context():
                return player.draw(batch, steps)

        if kind == "training":
            player.model.train()
            flops = self._counted(way, kind, lambda: loss().backward())
            step = entrant.optimizer(player.model)

            def work() -> None:
                step(loss())

            trial = work
        else:
            player.model.eval()
            flops = self._counted(way, kind, lambda: draw(self.size.steps))

            def work() -> object:
                return draw(self.size.steps)

            def trial() -> object:
                return draw(3)

        if entrant.compiled:
            player.compile()
        return _silent(work), _silent(trial), flops

    def _counted(self, way: Way, kind: str, work: Callable[[], object]) -> float:
        """FLOPs do not depend on the number format, so each architecture is counted only once."""
        options = getattr(way.build, "keywords", {})
        key = (kind, way.build.func.__name__, *sorted((name, str(value)) for name, value in options.items()))
        if key not in self.counted:
            self.counted[key] = _count(work)
        return self.counted[key]


def matrix_products(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """The four products of one block at these shapes, as bare F.linear, and their FLOPs."""
    rows, d = size.batch * size.tokens, size.width
    shapes = ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))
    pairs = [
        (torch.randn(rows, a, device=device, dtype=dtype), torch.randn(b, a, device=device, dtype=dtype))
        for a, b in shapes
    ]

    def work() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    return work, 2.0 * rows * sum(a * b for a, b in shapes)


def seconds(work: Callable[[], object], least: float, device: torch.device) -> float:
    """Time of one call, from as many as fit into `least` seconds."""
    spent, calls = 0.0, 0
    while spent < least:
        spent += _once(work, device)
        calls += 1
    return spent / calls


def _once(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _count(work: Callable[[], object]) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())


def quietly(call: Callable, *arguments):
    """Some peers print, and draw bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call(*arguments)


def _silent(work: Callable[[], object]) -> Callable[[], object]:
    return functools.partial(quietly, work)


# What is written.


def machine(device: torch.device) -> str:
    """The kind of machine, without its name."""
    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    has = [name for name, flag in (("AMX", "amx_bf16"), ("AVX-512 bf16", "avx512_bf16")) if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{platform.machine().replace('_', '-')} CPU, {cores} cores" + (f", {' and '.join(has)}" if has else "")
    return f"{torch.cuda.get_device_name(device)}; {text}" if device.type == "cuda" else text


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def work_markdown(rows: list[dict], batch: int) -> str:
    lines = ["| | parameters | GFLOP of one forward pass, an image | of maskimg's |", "| --- | --- | --- | --- |"]
    first = rows[0]["forward_flops"]
    for row in rows:
        if "missing" in row:
            lines.append(f"| {row['name']} | {row['missing']} | | |")
            continue
        each = row["forward_flops"] / batch / 1e9
        share = row["forward_flops"] / first
        lines.append(f"| {row['name']} | {row['parameters'] / 1e6:.1f} M | {each:.3g} | {share:.2f} |")
    return "\n".join(lines)


def table_markdown(table: dict) -> str:
    """Rows in the order of entry; ratios say how many times as long a row takes as ours, 1.5 is half as long again."""
    rows = table["rows"]
    base = [name for name in OURS if any(name in row.get("ratios", {}) for row in rows)]
    titles = ["", "how", "seconds (min to max)", "images/s", "GFLOP", "of the rate"]
    titles += [f"time / {name}" for name in base]
    lines = [f"| {' | '.join(titles)} |", "| " + " | ".join(["---"] * len(titles)) + " |"]
    for row in rows:
        if "missing" in row:
            lines.append(f"| {row['name']} | {row['missing']} |" + " |" * (len(titles) - 2))
            continue
        ratios = [f"{row['ratios'][name]:.2f}" for name in base]
        cells = [
            row["name"],
            row["way"],
            f"{row['median_s']:.3g} ({row['min_s']:.3g} to {row['max_s']:.3g})",
            f"{row['images_per_s']:.3g}",
            f"{row['flops'] / 1e9:.3g}",
            f"{row['share_of_matrix_rate']:.0%}",
            *ratios,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rates = ", ".join(f"{name} {rate / 1e9:.3g} GFLOP/s" for name, rate in table["matrix_flops_per_s"].items())
    lines += ["", f"Bare matrix products at these shapes in the same rounds: {rates}."]
    for name in base:
        faster = [
            f"{row['name']} ({row['ratios'][name]:.2f})"
            for row in rows
            if row.get("ratios", {}).get(name, 1.0) < 1 and not row["name"].startswith("maskimg")
        ]
        lines.append(f"Faster than {name}: {', '.join(faster) or 'none'}.")
    return "\n".join(lines)


def markdown(report: dict) -> str:
    size = report["size"]
    known = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    head = [
        "# The generator's speed beside its peers",
        "",
        f"{known[:1].upper()}{known[1:]}. Under each title: the command, when, and on what machine.",
        "",
        f"{size['side']}x{size['side']} tokens of {size['codes']:,} codes, width {size['width']}, depth "
        f"{size['depth']}, {size['heads']} heads, batch {size['batch']}, {size['steps']} steps of sampling. Medians of "
        "interleaved rounds; `time / ...` is the median of ratios within a round, above 1 where the row is slower. "
        "`of the rate`: the row's own counted FLOPs a second as a share of bare matrix products. "
        "What each row does is said at the top of `benchmarks/generator.py`.",
        "",
        work_markdown(report["work"], size["batch"]),
    ]
    for table in report["tables"]:
        title = f"{table['kind'].capitalize()}, {table['form']}"
        how = table.get("measured", report)
        told = f"`{how['command']}`, {how['date']}, {how['rounds']} rounds; {how['machine']}, {how['threads']} threads."
        head += ["", f"## {title}", "", told, "", table_markdown(table)]
    return "\n".join(head) + "\n"


def earlier_tables(file: Path, report: dict, chosen: list[str]) -> list[dict]:
    """The tables of a file of earlier runs at the same size that are not measured again."""
    if not file.exists():
        return []
    before = json.loads(file.read_text(encoding="utf-8"))
    if before["size"] != report["size"]:
        return []
    kept = [table for table in before["tables"] if f"{table['kind']}, {table['form']}" not in chosen]
    return [{"measured": _run(before)} | table for table in kept]


def _run(report: dict) -> dict:
    """How the tables of a run were measured."""
    return {key: report[key] for key in ("command", "date", "machine", "rounds", "threads")}


def main() -> None:
    every = [f"{kind}, {form}" for kind in KINDS for form in FORMS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="toy sizes, for tests")
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled: with --small, seconds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, help="folder for the JSON and markdown files")
    parser.add_argument("--only", nargs="+", help=f"tables whose title contains one of these words: {'; '.join(every)}")
    options = parser.parse_args()

    # Third parties warn and log; the tables are the output.
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    # Formats, modes and batch sizes are compiled apart, and each library's block is one function for all of them.
    torch._dynamo.config.recompile_limit = 64
    torch.manual_seed(0)

    device = pick_device(options.device)
    size = SMALL if options.small else Size()
    chosen = [title for title in every if not options.only or any(word in title for word in options.only)]
    if not chosen:
        parser.error(f"--only {' '.join(options.only)} names no table of {'; '.join(every)}")
    if not options.only and device.type == "cpu":  # a batch of one is a question of launches, which a CPU has not
        chosen = [title for title in chosen if not title.startswith("one image")]

    bench = Bench(size, device, options.rounds, eager=options.eager)
    report = {
        "command": shlex.join(["python", "benchmarks/generator.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "size": dataclasses.asdict(size),
        "rounds": options.rounds,
        "work": bench.work_table(),
        "tables": [],
    }
    print(markdown(report))
    results = options.results or (None if options.small else RESULTS)
    file = results / f"generator-{device.type}.json" if results is not None else None
    if file is not None:
        report["tables"] = earlier_tables(file, report, chosen)
    for title in chosen:
        table = bench.table(*title.split(", ")) | {"measured": _run(report)}
        report["tables"].append(table)
        report["tables"].sort(key=lambda table: every.index(f"{table['kind']}, {table['form']}"))
        print(f"## {title.capitalize()}\n\n{table_markdown(table)}\n", flush=True)
        torch._dynamo.reset()
        if file is not None:  # after each table, so that a long run that is stopped keeps what it has
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            file.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
