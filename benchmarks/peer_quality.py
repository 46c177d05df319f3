"""Quality at equal data, parameters and processor time: ours beside x-transformers' NonAutoregressiveWrapper.

    python benchmarks/peer_quality.py "torchvision://FashionMNIST?root=DIR" runs/peers   # about 25 minutes of one core
    python benchmarks/peer_quality.py runs/emoji runs/emoji-peers --name peer-quality-emoji

Both learn the same codes, of one tokenizer of ours, without labels (the wrapper has no guidance). Our part is
`train_generator` as `maskimg train --preset cpu` calls it, at a smaller network; theirs is TransformerWrapper and
NonAutoregressiveWrapper at their defaults, with feed-forwards as wide as makes the parameters equal. Four cells: the
weights of either, drawn by either's sampler in 18 forward passes, which is the wrapper's default.

What theirs is given beyond its defaults: AdamW, our batch size, our warm-up and cool-down, bf16 and gradients clipped
at 0.5 as in its own example; logits in fp32, since its Gumbel noise would be drawn in bf16; and a loss that can be
minimised. As it comes the loss is negative, so that training makes predictions worse; the sign is turned, or
`use_simple_mdlm_loss_weight` is left out, whichever is better. That, and the learning rate of both, is chosen by a
bound on held-out grids after short trainings; the grids that choose do not judge.

Budgets are seconds of a CPU (no GPU's), not of the clock: other work on the machine then costs both the same. Up to
three minutes neither is compiled. Started again, it goes on where it stopped; `--seeds` lets several processes share
the work. Samples are in WORK/*.png.

Shapes: b images, h w tokens, n = h w, v codes.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from einops import rearrange
from generator import machine, versions
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from maskimg.data.codes import CodeCache
from maskimg.data.pictures import Pictures, list_pictures, read_pictures
from maskimg.evaluation.judge import Judge, kept_judge
from maskimg.evaluation.metrics import frechet_distance
from maskimg.evaluation.outside import NotMeasured
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.maskgit import MaskGit
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.networks.wrapper import ForeignNet
from maskimg.sampler import Sampler
from maskimg.training.generator import train_generator
from maskimg.training.loop import run as training_run
from maskimg.training.loop.run import Budget, batch_indices, learning_rate_scale
from maskimg.training.loop.session import Session
from maskimg.training.plan import Plan, plan_for, usual_side
from maskimg.training.stages import encode_stage, tokenizer_stage
from vqgan import Tokenizer
from vqgan.images import normalize, sheet, to_pil, to_uint8

RESULTS = Path(__file__).parent / "results"
NAME = "peer-quality"
OURS, THEIRS = "maskimg", "x-transformers"
PARTIES = (OURS, THEIRS)
SEEDS = (0, 1, 2)
RATES = (2.3e-4, 7e-4, 2e-3, 6e-3)  # around our default, and down to what its examples use
LOSSES = ("sign turned", "without its weight")
STEPS = 18  # forward passes of both samplers: the wrapper's default
CHOOSING = 5  # every fifth held-out picture's grid chooses settings; the others judge
SIZES = {"dim": 128, "depth": 4, "heads": 2}  # small enough to come far in minutes of one core
LEVELS = (4, 4, 4, 4)  # 256 codes, since its sampler spends most of its time on sorting them
CLIP = 0.5


@dataclasses.dataclass(frozen=True)
class Setting:
    """How one party trains; `loss` says how the wrapper's is worked around, and is empty for ours."""

    party: str
    rate: float
    loss: str = ""

    @property
    def name(self) -> str:
        return ", ".join(each for each in (self.party, f"{self.rate:g}", self.loss) if each)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What both parties are given, and what judges them.

    Attributes:
        codes: without labels. config: of our network.
        choosing: (n, h, w) held-out grids that settings are chosen by.
        real: (n, 128) the judge's features of the held-out pictures that judge.
    """

    work: Path
    plan: Plan
    tokenizer: Tokenizer
    codes: CodeCache
    config: TransformerConfig
    choosing: torch.Tensor
    judge: Judge
    real: torch.Tensor

    @property
    def train(self) -> torch.Tensor:
        """(n, h, w)"""
        return self.codes.part(held_out=False).codes[0, :]


# What is given.


def prepare(
    source: str, work: Path, judge_steps: int, tokenizer_steps: int, count: int
) -> tuple[Bench, dict[str, float]]:
    """Tokenizer, codes and judge, each kept in `work`; and the distances that no generator can be below.

    Tokenizer and judge learn from all training pictures, the generators from `count` of them.
    """
    listing = list_pictures(source)
    plan = plan_for(len(listing), usual_side(listing), preset="cpu", labelled=True)
    plan = dataclasses.replace(
        plan,
        versions=1,
        tokenizer=dataclasses.replace(plan.tokenizer, levels=LEVELS),
        tokenizer_budget=Budget(steps=tokenizer_steps),
    )
    pictures = read_pictures(listing, plan.size, work / "pictures", progress=tqdm)
    tokenizer = tokenizer_stage(pictures, plan, work / "tokenizer")
    codes = encode_stage(tokenizer, few(pictures, count), plan, work / "codes", session=Session(progress=tqdm))
    codes = dataclasses.replace(codes, fields={}, labels=codes.labels[:, :0])
    judge = kept_judge(work / "judge", pictures, judge_steps, progress=tqdm)
    if isinstance(judge, NotMeasured):
        raise SystemExit(f"the classifier {judge.reason}")
    unseen = pictures.part(held_out=True)
    chooses = torch.arange(len(unseen.names)) % CHOOSING == 0
    choosing = codes.part(held_out=True).codes[0, :][chooses][:1000]
    config = TransformerConfig(codes.vocab_size, codes.grid, **SIZES)
    bench = Bench(work, plan, tokenizer, codes, config, choosing, judge, judge.features(unseen.pixels[~chooses]))
    return bench, floors(bench, pictures)


def few(pictures: Pictures, count: int) -> Pictures:
    """All held-out pictures and, evenly spread, at most `count` training pictures."""
    train = (~pictures.held_out).nonzero()[:, 0]
    chosen = train[torch.linspace(0, len(train) - 1, min(count, len(train))).long()]
    rows = torch.cat((chosen, pictures.held_out.nonzero()[:, 0]))
    return dataclasses.replace(
        pictures,
        pixels=pictures.pixels[rows],
        labels=pictures.labels[rows],
        held_out=pictures.held_out[rows],
        names=[pictures.names[i] for i in rows.tolist()],
        fingerprint=f"{pictures.fingerprint}, {count} of them",
        captions=[pictures.captions[i] for i in rows.tolist()] if pictures.captions else [],
    )


def floors(bench: Bench, pictures: Pictures, count: int = 2000) -> dict[str, float]:
    """Distances of `count` training pictures to the held-out ones: themselves, and through the tokenizer."""
    train = pictures.part(held_out=False)
    images = train.pixels[torch.linspace(0, len(train.names) - 1, count).long()]
    codes = bench.train[torch.linspace(0, len(bench.train) - 1, count).long()]
    return {
        "real training pictures": distance(bench, images),
        "training pictures through the tokenizer": distance(bench, decode(bench, codes)),
    }


def decode(bench: Bench, codes: torch.Tensor) -> torch.Tensor:
    """(b, h, w) -> (b, 3, H, W) uint8"""
    return torch.cat([to_uint8(bench.tokenizer.decode(part)) for part in codes.split(64)])


def distance(bench: Bench, images: torch.Tensor) -> float:
    return frechet_distance(bench.judge.features(images), bench.real)


# Training.


@contextlib.contextmanager
def processor_clock() -> Iterator[None]:
    """Lets a Run count seconds of this process's processor time, so that other work on the machine is not counted."""
    with mock.patch.object(training_run, "time", SimpleNamespace(perf_counter=time.process_time)):
        yield


def train_ours(bench: Bench, setting: Setting, seed: int, minutes: float, directory: Path) -> tuple[MaskGit, dict]:
    training = dataclasses.replace(bench.plan.generator_training, learning_rate=setting.rate, seed=seed)
    train = bench.codes.part(held_out=False)  # so that it spends nothing on held-out losses: theirs does not either
    with processor_clock():
        model, run = train_generator(train, bench.config, training, Budget(minutes=minutes), directory)
    if run.interrupted:
        raise SystemExit("stopped: run the same command again to continue")
    return model, {"steps": run.step, "seconds": run.seconds}


def train_theirs(bench: Bench, setting: Setting, seed: int, minutes: float, directory: Path) -> tuple[MaskGit, dict]:
    """-> the weights, as MaskGit holds them, and what it took."""
    kept = directory / "model.safetensors"
    net = their_net(bench.config)
    if kept.exists():
        net.load_state_dict(load_file(kept))
        return as_ours(net, bench.config), json.loads((directory / "took.json").read_text())
    train, batch = bench.train, bench.plan.generator_training.batch_size
    device = pick_device()
    dtype = pick_dtype("auto", device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)  # the wrapper tosses Python's coins
        net = their_net(bench.config).to(device)
        model = wrapped(net, bench.config, loss=setting.loss)
        optimizer = torch.optim.AdamW(net.parameters(), lr=setting.rate, fused=True)
        step, started = 0, time.process_time()
        while (progress := (time.process_time() - started) / (60 * minutes)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = setting.rate * learning_rate_scale(progress)
            codes = train[batch_indices(seed, step, len(train), batch)].flatten(1).to(device)
            with autocast(device, dtype):
                loss = sign_of(setting.loss) * model(codes).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            if norm.isfinite():  # its weight has a pole at 0
                optimizer.step()
            step += 1
    took = {"steps": step, "seconds": time.process_time() - started}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "took.json").write_text(json.dumps(took))
    save_file(net.state_dict(), kept)
    return as_ours(net, bench.config), took


TRAINERS = {OURS: train_ours, THEIRS: train_theirs}


def their_net(config: TransformerConfig) -> Any:
    """Their network of our width, depth and heads, its feed-forwards as wide as makes the parameters equal."""
    with torch.device("meta"):
        ours = parameters(MaskedTransformer(config))
        inner = matched(
            ours, lambda inner: parameters(_their_net(config, inner)), range(2 * config.dim, 8 * config.dim, 16)
        )
    return _their_net(config, inner)


def _their_net(config: TransformerConfig, inner: int) -> Any:
    from x_transformers import Encoder, TransformerWrapper

    layers = Encoder(dim=config.dim, depth=config.depth, heads=config.heads, ff_mult=inner / config.dim)
    h, w = config.grid
    return TransformerWrapper(
        num_tokens=config.vocab_size + 1, logits_dim=config.vocab_size, max_seq_len=h * w, attn_layers=layers
    )


def matched(wanted: int, count: Callable[[int], int], widths: Iterable[int]) -> int:
    """The width whose count of parameters is nearest to `wanted`.

    Raises:
        ValueError: none comes within two percent.
    """
    best = min(widths, key=lambda width: abs(count(width) - wanted))
    if abs(count(best) - wanted) > 0.02 * wanted:
        raise ValueError(f"no width has about {wanted} parameters; the nearest, {best}, has {count(best)}")
    return best


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def wrapped(net: nn.Module, config: TransformerConfig, loss: str = "") -> Any:
    """The NonAutoregressiveWrapper around a network; logits are fp32 also under autocast."""
    from x_transformers import NonAutoregressiveWrapper

    net.register_forward_hook(_to_float)
    options = {"use_simple_mdlm_loss_weight": False} if loss == "without its weight" else {}
    return NonAutoregressiveWrapper(net, mask_id=config.vocab_size, steps=STEPS, **options)


def sign_of(loss: str) -> int:
    """What the wrapper's loss is multiplied by."""
    return -1 if loss == "sign turned" else 1


def _to_float(module: nn.Module, given: Any, output: Any) -> Any:
    return tuple(each.float() for each in output) if isinstance(output, tuple) else output.float()


def as_ours(net: nn.Module, config: TransformerConfig) -> MaskGit:
    return MaskGit(ForeignNet(net, config.vocab_size, config.grid))


class AsTheirs(nn.Module):
    """Our network with the face of theirs: flat codes (b, n) -> logits (b, n, v), and embeddings that nobody reads."""

    output_is_log_prob = False

    def __init__(self, net: MaskedTransformer):
        super().__init__()
        h, w = net.grid
        self.net, self.emb_dim = net, net.config.dim
        self.num_tokens, self.max_seq_len = net.vocab_size + 1, h * w

    def forward(
        self, codes: torch.Tensor, sum_embeds: None = None, return_logits_and_embeddings: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        logits = self.net(rearrange(codes, "b (h w) -> b h w", h=self.net.grid[0]))
        logits = rearrange(logits, "b h w v -> b (h w) v")
        return (logits, logits) if return_logits_and_embeddings else logits


# Choosing and judging.


@torch.no_grad()
def bound(model: MaskGit, grids: torch.Tensor, draws: int = 4) -> float:
    """The any-order bound of grids (n, h, w), in bits a token."""
    chance = torch.Generator().manual_seed(0)
    with autocast(model.device, pick_dtype("auto", model.device)):
        parts = [model.eval().elbo(part.to(model.device), draws=draws, generator=chance) for part in grids.split(100)]
    return torch.cat(parts).mean().item() / grids[0].numel() / torch.tensor(2.0).log().item()


def settings() -> list[Setting]:
    return [Setting(OURS, rate) for rate in RATES] + [Setting(THEIRS, rate, loss) for loss in LOSSES for rate in RATES]


def chosen(tuning: dict[str, dict], party: str) -> Setting:
    """The party's setting with the smallest bound."""
    return min(
        (each for each in settings() if each.party == party), key=lambda each: tuning[each.name]["bits_per_token"]
    )


def draw(model: MaskGit, config: TransformerConfig, sampler: str, count: int, seed: int) -> torch.Tensor:
    """`count` grids (count, h, w) by the sampler of one party."""
    with torch.random.fork_rng(), autocast(model.device, pick_dtype("auto", model.device)):
        torch.manual_seed(seed)
        firsts = range(0, count, 100)
        if sampler == OURS:
            ours = Sampler(steps=STEPS)
            every = [torch.arange(first, min(first + 100, count)) + seed * count for first in firsts]
            return torch.cat([model.generate(len(seeds), sampler=ours, seeds=seeds) for seeds in every])
        net = AsTheirs(model.net) if isinstance(model.net, MaskedTransformer) else model.net.trunk.net
        theirs = wrapped(net, config)
        codes = torch.cat([theirs.generate(min(100, count - first)) for first in firsts])
        return rearrange(codes, "b (h w) -> b h w", h=config.grid[0])


def measure(
    bench: Bench, rows: "Rows", seeds: Iterable[int], minutes: float, tune_minutes: float, samples: int
) -> None:
    """Everything that `rows` does not hold yet."""
    for setting in settings():
        if not rows.has("tuning", setting.name):
            directory = bench.work / "tuning" / setting.name.replace(", ", "-").replace(" ", "-")
            model, took = TRAINERS[setting.party](bench, setting, 0, tune_minutes, directory)
            rows.add("tuning", setting.name, {"bits_per_token": bound(model, bench.choosing), **took})

    for seed in seeds:
        # In changing order, should the machine slow down on the way.
        for party in PARTIES if seed % 2 == 0 else PARTIES[::-1]:
            setting = chosen(rows["tuning"], party)
            cells = [f"{party}, {sampler}, {seed}" for sampler in PARTIES]
            if all(rows.has("cells", cell) for cell in cells):
                continue
            directory = bench.work / "trained" / f"{party}-{seed}"
            model, took = TRAINERS[party](bench, setting, seed, minutes, directory)
            name = f"{party}, {seed}"
            if not rows.has("training", name):
                figures = {"parameters": parameters(model), "bits_per_token": bound(model, bench.choosing)}
                rows.add("training", name, {"setting": setting.name, **figures, **took})
            for sampler, cell in zip(PARTIES, cells, strict=True):
                if not rows.has("cells", cell):
                    started = time.process_time()
                    codes = draw(model, bench.config, sampler, samples, seed)
                    took = {"seconds": time.process_time() - started}
                    images = decode(bench, codes)
                    figures = {"frechet_distance": distance(bench, images), "distinct": len(codes.unique(dim=0))}
                    rows.add("cells", cell, figures | took)
                    shown = [to_pil(normalize(image)) for image in images[:64]]
                    sheet(shown, 16).save(bench.work / f"{party} drawn by {sampler}, {seed}.png")


class Rows:
    """What has been measured: a file for each row, so that several processes can share the seeds.

    Raises:
        SystemExit: the directory belongs to other settings.
    """

    PARTS = ("tuning", "training", "cells")

    def __init__(self, directory: Path, about: dict[str, Any]):
        self.directory, self.about = directory, about
        directory.mkdir(parents=True, exist_ok=True)
        known = directory / "about.json"
        if known.exists() and (found := json.loads(known.read_text())) != about:
            raise SystemExit(f"`{directory}` holds rows of {found}, now {about}: give another directory")
        known.write_text(json.dumps(about))

    def has(self, part: str, name: str) -> bool:
        return name in self[part]

    def __getitem__(self, part: str) -> dict[str, dict]:
        """The rows of a part by their names, in the order of these."""
        found = [json.loads(path.read_text()) for path in sorted(self.directory.glob(f"{part}-*.json"))]
        return {row.pop("name"): row for row in found}

    def add(self, part: str, name: str, figures: dict) -> None:
        rounded = {key: round(value, 4) for key, value in figures.items() if isinstance(value, float)}
        row = {"name": name, **figures, **rounded}
        path = self.directory / f"{part}-{re.sub('[^a-z0-9.]+', '-', name)}.json"
        path.with_suffix(".part").write_text(json.dumps(row))
        path.with_suffix(".part").replace(path)
        print(part, row, flush=True)

    def all(self) -> dict[str, dict]:
        return {"about": self.about} | {part: self[part] for part in self.PARTS}


# What is written.


def spread(rows: dict, trained: str, sampled: str) -> list[float]:
    """The distances of a cell, a seed each."""
    return [
        row["frechet_distance"] for name, row in rows["cells"].items() if name.startswith(f"{trained}, {sampled}, ")
    ]


def cell_table(rows: dict) -> str:
    """The four cells; in each the mean over seeds, and from the smallest to the largest."""
    lines = [
        "| weights trained by | drawn by maskimg's sampler | drawn by x-transformers' sampler |",
        "| --- | --- | --- |",
    ]
    for trained in PARTIES:
        cells = []
        for sampled in PARTIES:
            found = spread(rows, trained, sampled)
            words = f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "not measured"
            cells.append(words)
        lines.append(f"| {trained} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(rows: dict) -> list[str]:
    """Ours beside theirs, in words; the factor of the means, and whether it holds for every pair of seeds."""
    ours = spread(rows, OURS, OURS)
    sentences = []
    for sampled, words in ((THEIRS, "as it comes"), (OURS, "with our sampler")):
        theirs = spread(rows, THEIRS, sampled)
        if ours and theirs:
            share = statistics.mean(ours) / statistics.mean(theirs)
            worst = max(ours) / min(theirs)
            sentences.append(
                f"maskimg's distance is {share:.2f} of x-transformers' {words}; {worst:.2f} if our worst seed meets "
                "their best."
            )
    return sentences


def markdown(rows: dict) -> str:
    about = rows["about"]
    known = ", ".join(f"{name} {version}" for name, version in rows["versions"].items())
    lines = [
        "# Quality beside x-transformers at equal processor time",
        "",
        f"`{rows['command']}`, {rows['date']}; {rows['machine']}; {known}.",
        "",
        f"{about['source']}, codes of {about['grid'][0]}x{about['grid'][1]} tokens, {about['vocab_size']} codes, no "
        f"labels. {about['minutes']:g} minutes of one core a training, bf16, {len(SEEDS)} seeds each, "
        f"{about['samples']:,} samples a cell in {STEPS} forward passes. Fréchet distance to held-out pictures in the "
        "features of a classifier trained on the same pictures, which is no FID; the mean over seeds (smallest to "
        "largest).",
        "",
        cell_table(rows),
        "",
        *(f"{name[0].upper()}{name[1:]}: {value:.2f}." for name, value in rows["floors"].items()),
        *verdicts(rows),
        "",
        "| training | setting | parameters | steps | core seconds | held-out bits a token |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows["training"].items():
        lines.append(
            f"| {name} | {row['setting']} | {row['parameters']:,} | {row['steps']} | {row['seconds']:.0f} | "
            f"{row['bits_per_token']:.3f} |"
        )
    lines += ["", "| trained, drawn by, seed | Fréchet distance | distinct grids | core seconds |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, row in rows["cells"].items():
        figures = f"{row['frechet_distance']:.2f} | {row['distinct']:,} | {row['seconds']:.0f}"
        lines.append(f"| {name} | {figures} |")
    lines += [
        "",
        "Settings were chosen by this bound, on held-out grids that do not judge, after trainings of "
        f"{about['tune_minutes']:g} minutes:",
        "",
        "| setting | held-out bits a token | steps |",
        "| --- | --- | --- |",
        *(f"| {name} | {row['bits_per_token']:.3f} | {row['steps']} |" for name, row in rows["tuning"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="pictures, as `maskimg train` takes them")
    parser.add_argument("work", type=Path, help="directory for what is trained")
    parser.add_argument("--minutes", type=float, default=2, help="of the processor, for each training")
    parser.add_argument("--tune-minutes", type=float, default=0.25, help="for each setting that is tried")
    parser.add_argument("--tokenizer-steps", type=int, default=500)
    parser.add_argument("--judge-steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=2000, help="for each cell")
    parser.add_argument("--pictures", type=int, default=20_000, help="training pictures whose codes are learnt")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="only these now; none: only the tuning")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", default=NAME, help="of the files of results")
    given = parser.parse_args()

    given.work.mkdir(parents=True, exist_ok=True)
    bench, found = prepare(given.source, given.work, given.judge_steps, given.tokenizer_steps, given.pictures)
    about = {
        "source": given.source.partition("?")[0].rpartition("/")[2],
        "grid": list(bench.codes.grid),
        "vocab_size": bench.codes.vocab_size,
        **{name: getattr(given, name) for name in ("minutes", "tune_minutes", "samples", "pictures")},
    }
    kept = Rows(given.work / "rows", about)
    measure(bench, kept, given.seeds, given.minutes, given.tune_minutes, given.samples)

    numbers = ("minutes", "tune_minutes", "tokenizer_steps", "judge_steps", "samples", "pictures")
    others = [name for name in numbers if getattr(given, name) != parser.get_default(name)]
    flags = "".join(f" --{name.replace('_', '-')} {getattr(given, name):g}" for name in others)
    flags += f" --name {given.name}" if given.name != NAME else ""
    threads = torch.get_num_threads()
    rows = kept.all() | {
        "command": f"python benchmarks/peer_quality.py {about['source']} WORK{flags}",
        "date": date.today().isoformat(),
        "machine": f"{machine(torch.device('cpu'))}, {threads} thread{'s' if threads > 1 else ''}",
        "versions": {name: versions()[name] for name in ("torch", "x-transformers")},
        "floors": {name: round(value, 4) for name, value in found.items()},
    }
    given.results.mkdir(exist_ok=True)
    (given.results / f"{given.name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.results / f"{given.name}.md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
