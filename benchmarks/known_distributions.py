"""Samplers on distributions whose truth is known: what each order and setting does to a marginal, a walk, an energy.

    python benchmarks/known_distributions.py                        # trains three small networks, draws, writes
    python benchmarks/known_distributions.py --cache runs/known     # keeps the networks there, to draw again

Every row is drawn twice: from the exact conditional distributions (the oracle, for which every error is the
sampler's) and from a network trained here (the rest of the error is training's). Beside them stand as many exact
samples, since what they miss is the noise of counting, and x-transformers' own `generate()` on the same models, where
that package is installed. Guidance is off. About 23 CPU minutes. Writes known-distributions.json and .md in results/.

Shapes: b images, h w tokens, n = h * w, v codes.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from maskimg.hardware import autocast, compile_blocks, pick_dtype
from maskimg.maskgit import MaskGit, Objective
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.networks.wrapper import ForeignNet
from maskimg.sampler import Sampler
from maskimg.sampling import sample
from maskimg.training.loop.run import learning_rate_scale, step_generator

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")
TOKENS = 8192  # tokens of a batch, in training and in drawing
REPEATS = 200  # sets of exact samples from which the noise of counting is taken

Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Training:
    """How each network is made and trained; Muon and AdamW as in maskimg/training/generator.py."""

    dim: int = 96
    depth: int = 3
    heads: int = 2
    registers: int = 1
    steps: int = 800
    learning_rate: float = 3e-3
    schedule: str = "linear"
    loss_weight: str = "none"
    seed: int = 0


class Truth(Protocol):
    """A distribution over grids of which everything asked here is known.

    Attributes:
        count: samples drawn for each row.
        few: steps of the rows that draw several tokens at a time.
        training: of its network.
        target: what a good row reaches, in words; `reached` in code.
    """

    name: str
    grid: tuple[int, int]
    vocab_size: int
    count: int
    few: int
    training: Training
    target: str

    @property
    def entropy(self) -> float:
        """Nats of a whole grid."""
        ...

    def draw(self, b: int, generator: torch.Generator) -> torch.Tensor:
        """Exact samples (b, h, w)."""
        ...

    def oracle(self) -> nn.Module:
        """Flat codes (b, n), some MASK -> log-probabilities (b, n, v) of each token given those that are known."""
        ...

    def measure(self, codes: torch.Tensor) -> Figures:
        """Codes (b, h, w) -> how far they are from the truth."""
        ...

    def reached(self, figures: Figures, noise: Figures) -> bool:
        """Whether a row reaches the target; `noise` is what 95 in 100 sets of exact samples stay below."""
        ...


class Independent:
    """Independent tokens of unequal probabilities: what a sampler does to a marginal."""

    name, grid, vocab_size = "independent tokens", (8, 8), 8
    count, few = 1024, 18
    training = Training(steps=300)
    target = "marginal TV below 0.02"
    probs = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])

    @property
    def entropy(self) -> float:
        return 64 * entropy_of(self.probs)

    def draw(self, b: int, generator: torch.Generator) -> torch.Tensor:
        return torch.multinomial(self.probs, b * 64, replacement=True, generator=generator).view(b, 8, 8)

    def oracle(self) -> nn.Module:
        return IndependentOracle(self.probs)

    def measure(self, codes: torch.Tensor) -> Figures:
        found = shares(codes, self.vocab_size)
        return {"marginal TV": total_variation(found, self.probs), "marginal entropy": entropy_of(found)}

    def reached(self, figures: Figures, noise: Figures) -> bool:
        return figures["marginal TV"] < 0.02


class RingWalk:
    """A walk on a ring of 16 states, -1, 0 or +1 with 1/4, 1/2, 1/4: whether neighbours that are drawn apart agree."""

    name, grid, vocab_size = "ring walk", (1, 64), 16
    count, few = 1024, 18
    training = Training()
    target = "illegal steps below 0.02, marginal TV below 0.06 and stays within 0.02 of one half, all at once"
    moves = torch.tensor([0.25, 0.5, 0.25])

    @property
    def entropy(self) -> float:
        return math.log(16) + 63 * entropy_of(self.moves)

    def draw(self, b: int, generator: torch.Generator) -> torch.Tensor:
        start = torch.randint(0, 16, (b, 1), generator=generator)
        moves = torch.multinomial(self.moves, b * 63, replacement=True, generator=generator).view(b, 63) - 1
        return (torch.cat((start, moves), dim=1).cumsum(1) % 16)[:, None]

    def oracle(self) -> nn.Module:
        return RingWalkOracle(self.moves)

    def measure(self, codes: torch.Tensor) -> Figures:
        moves = (codes[:, 0, 1:] - codes[:, 0, :-1] + 1) % 16  # 0, 1, 2 are the legal ones
        return {
            "illegal steps": (moves > 2).float().mean().item(),
            "stays": (moves == 1).float().mean().item(),
            "marginal TV": total_variation(shares(codes, 16), torch.full((16,), 1 / 16)),
            "distinct": float(len(codes.flatten(1).unique(dim=0))),
        }

    def reached(self, figures: Figures, noise: Figures) -> bool:
        legal, spread = figures["illegal steps"] < 0.02, figures["marginal TV"] < 0.06
        return legal and spread and abs(figures["stays"] - 0.5) < 0.02


class Potts:
    """A 4x4 Potts model: three states, equal neighbours favoured by exp(0.8), free boundary.

    Exact by the transfer matrix: a row of four tokens is one of 81 states, and the grid a chain of four rows.
    """

    name, grid, vocab_size = "Potts grid", (4, 4), 3
    count, few = 8192, 6
    training = Training()
    target = "KL of the energy histogram below that of 95 in 100 sets of exact samples"
    coupling, pairs = 0.8, 24

    def __init__(self):
        self.rows = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)
        self.inside = (self.rows[:, 1:] == self.rows[:, :-1]).sum(1)  # (81,) equal pairs within a row
        self.between = (self.rows[:, None] == self.rows[None]).sum(2)  # (81, 81) and between two rows
        self.row_weights = (self.coupling * self.inside.double()).exp()
        self.transfer = (self.coupling * self.between.double()).exp()

        # How many of the 3^16 grids have so many equal pairs, by the last row's state: (25, 81).
        grids = torch.zeros(self.pairs + 1, 81, dtype=torch.float64)
        grids[self.inside, torch.arange(81)] = 1
        for _ in range(3):
            longer = torch.zeros_like(grids)
            for equal in range(5):
                added = grids @ (self.between == equal).double()
                for within in range(4):
                    here, gain = self.inside == within, equal + within
                    longer[gain:, here] += added[: len(added) - gain, here]
            grids = longer
        weights = grids.sum(1) * (self.coupling * torch.arange(self.pairs + 1).double()).exp()
        self.log_partition = weights.sum().log().item()
        self.energies = weights / weights.sum()  # (25,) probability of so many equal pairs

    @property
    def entropy(self) -> float:
        mean = (self.energies * torch.arange(self.pairs + 1)).sum().item()
        return self.log_partition - self.coupling * mean

    def draw(self, b: int, generator: torch.Generator) -> torch.Tensor:
        # What the rows below weigh, for each state of a row; then row after row from the top.
        below = [torch.ones(81, dtype=torch.float64)]
        for _ in range(3):
            below.insert(0, self.transfer @ (self.row_weights * below[0]))
        weights = (self.row_weights * below[0]).expand(b, 81)
        states = []
        for rest in (*below[1:], None):
            states.append(torch.multinomial(weights, 1, generator=generator)[:, 0])
            if rest is not None:
                weights = self.transfer[states[-1]] * self.row_weights * rest
        return self.rows[torch.stack(states, dim=1)]  # (b, 4, 4)

    def oracle(self) -> nn.Module:
        return PottsOracle(self.rows, self.row_weights.float(), self.transfer.float())

    def measure(self, codes: torch.Tensor) -> Figures:
        equal = (codes[:, 1:] == codes[:, :-1]).sum((1, 2)) + (codes[:, :, 1:] == codes[:, :, :-1]).sum((1, 2))
        found = shares(equal, self.pairs + 1).double()
        kl = torch.special.xlogy(found, found / self.energies).nan_to_num().sum().item()
        sites = [total_variation(shares(site, 3), torch.full((3,), 1 / 3)) for site in codes.flatten(1).T]
        return {
            "energy KL": kl,
            "equal pairs": equal.double().mean().item() / self.pairs,
            "site TV": sum(sites) / len(sites),
        }

    def reached(self, figures: Figures, noise: Figures) -> bool:
        return figures["energy KL"] < noise["energy KL"]


class IndependentOracle(nn.Module):
    def __init__(self, probs: torch.Tensor):
        super().__init__()
        self.logs = nn.Parameter(probs.log(), requires_grad=False)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.logs.expand(*codes.shape, -1)


class RingWalkOracle(nn.Module):
    """A token depends on the nearest known one on either side: p(x | left, right) ~ P^i(left, x) P^j(x, right).

    A billionth of all moves go anywhere, so that there is an answer where draws made apart already contradict.
    """

    def __init__(self, moves: torch.Tensor):
        super().__init__()
        ring = torch.eye(16, dtype=torch.float64)
        step = sum(share * ring.roll(move - 1, dims=1) for move, share in enumerate(moves.tolist()))
        step = (1 - 1e-9) * step + 1e-9 / 16
        powers = [torch.linalg.matrix_power(step, i).clamp(min=1e-30).log() for i in range(64)]
        powers.append(torch.zeros_like(ring))  # nothing known on this side
        self.powers = nn.Parameter(torch.stack(powers).float(), requires_grad=False)  # (65, 16, 16), symmetric

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        places = torch.arange(64)
        known = codes < 16
        left = torch.where(known, places, -1).cummax(1).values
        right = torch.where(known, places, 64).flip(1).cummin(1).values.flip(1)
        logits = torch.zeros(*codes.shape, 16)
        for nearest, exists in ((left, left >= 0), (right, right < 64)):
            distance = torch.where(exists, (places - nearest).abs(), 64)
            state = codes.gather(1, nearest.clamp(0, 63)).clamp(max=15)
            logits = logits + self.powers[distance, state]
        return logits.log_softmax(-1)


class PottsOracle(nn.Module):
    """Messages between rows, forward and backward, over the row states that agree with the known tokens."""

    def __init__(self, rows: torch.Tensor, row_weights: torch.Tensor, transfer: torch.Tensor):
        super().__init__()
        self.transfer = nn.Parameter(transfer, requires_grad=False)  # (81, 81)
        self.row_weights = nn.Parameter(row_weights, requires_grad=False)  # (81,)
        self.rows = rows  # (81, 4)
        self.holds = nn.functional.one_hot(rows, 3).float()  # (81, 4, 3)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        codes = rearrange(codes, "b (h w) -> h b 1 w", w=4)
        rows = ((codes == self.rows) | (codes == 3)).all(-1) * self.row_weights  # (h, b, 81)
        above, below = [torch.ones_like(rows[0])], [torch.ones_like(rows[0])]
        for row in rows[:-1]:
            above.append((above[-1] * row) @ self.transfer)
        for row in rows.flip(0)[:-1]:
            below.insert(0, (below[0] * row) @ self.transfer)
        states = rows * torch.stack(above) * torch.stack(below)
        probs = torch.einsum("hbs,swv->bhwv", states, self.holds)
        probs = probs / probs.sum(-1, keepdim=True)
        return rearrange(probs.clamp(min=1e-30).log(), "b h w v -> b (h w) v")


class ForReference(nn.Module):
    """A MaskGit as x-transformers' NonAutoregressiveWrapper wants its network: flat codes, and a logit for MASK."""

    output_is_log_prob = False

    def __init__(self, model: MaskGit):
        super().__init__()
        h, w = model.grid
        self.model, self.max_seq_len, self.num_tokens, self.emb_dim = model, h * w, model.mask_id + 1, 1

    def forward(
        self, codes: torch.Tensor, sum_embeds: None = None, return_logits_and_embeddings: bool = True
    ) -> tuple[torch.Tensor, None]:
        logits = self.model.logits(rearrange(codes, "b (h w) -> b h w", h=self.model.grid[0]))
        return nn.functional.pad(rearrange(logits, "b h w v -> b (h w) v"), (0, 1), value=-1e9), None


def shares(codes: torch.Tensor, v: int) -> torch.Tensor:
    """Codes (...) -> how often each occurs (v,)."""
    return codes.flatten().bincount(minlength=v) / codes.numel()


def entropy_of(probs: torch.Tensor) -> float:
    return torch.special.entr(probs.double()).sum().item()


def total_variation(found: torch.Tensor, true: torch.Tensor) -> float:
    return 0.5 * (found - true).abs().sum().item()


def train(truth: Truth, cache: Path | None) -> MaskGit:
    """A network trained on fresh exact samples, or the one in `cache` that was trained in the same way."""
    how, (h, w) = truth.training, truth.grid
    size = {name: getattr(how, name) for name in ("dim", "depth", "heads", "registers")}
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        net = MaskedTransformer(TransformerConfig(truth.vocab_size, truth.grid, **size))
    model = MaskGit(net, objective=Objective(schedule=how.schedule, loss_weight=how.loss_weight))
    torch.compiler.reset()
    compile_blocks(net, CPU)

    described = json.dumps(dataclasses.asdict(how))
    path = cache / f"{truth.name.replace(' ', '-')}.safetensors" if cache else None
    if path and path.exists():
        with safe_open(path, "pt") as stored:
            same = stored.metadata().get("training") == described
        if same:
            model.load_state_dict(load_file(path))
            return model.eval()

    hidden = [p for name, p in net.named_parameters() if ".blocks." in name and p.ndim == 2]
    chosen = {id(p) for p in hidden}
    rest = [p for p in net.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(hidden, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(how.steps):
        rate = how.learning_rate * learning_rate_scale(step / how.steps)
        chance = step_generator(how.seed, step)
        codes = truth.draw(TOKENS // (h * w), chance)

        # Predict the masked tokens.
        with autocast(CPU, pick_dtype("auto", CPU)):
            loss = model(codes, generator=chance).loss

        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0:
            print(f"{truth.name}: step {step}, loss {loss.item():.4f}", flush=True)

    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: p.contiguous() for name, p in model.state_dict().items()}, path, {"training": described})
    return model.eval()


def bound(truth: Truth, oracle: MaskGit, model: MaskGit, count: int = 4096) -> Figures:
    """Held-out any-order bound of the model in nats a token, and what it loses to the oracle on the same masks."""
    codes = truth.draw(count, torch.Generator().manual_seed(1_000_003))
    n, found = truth.grid[0] * truth.grid[1], []
    for i, part in enumerate(codes.split(TOKENS // n)):
        exact = oracle.elbo(part, generator=torch.Generator().manual_seed(i))
        with autocast(CPU, pick_dtype("auto", CPU)):
            mine = model.elbo(part, generator=torch.Generator().manual_seed(i))
        found.append(torch.stack((mine, mine - exact)) / n)
    both = torch.cat(found, dim=1)
    (mean, excess), (error, excess_error) = both.mean(1).tolist(), (both.std(1) / count**0.5).tolist()
    return {
        "entropy": truth.entropy / n,
        "bound": mean,
        "bound error": error,
        "excess": excess,
        "excess error": excess_error,
    }


def samplers(truth: Truth) -> list[Sampler]:
    """The rows of a table: every setting with a few steps, and with one token a step all or the chief ones."""
    n = truth.grid[0] * truth.grid[1]
    options: list[dict[str, Any]] = [
        {"order": "random"},
        {"order": "halton"},
        *({"order": "confidence", "choice_temperature": t} for t in (0, 1, 4.5, 10)),
        *({"order": "moment", "choice_temperature": t} for t in (1, 4.5, 10)),
        *({"order": "random", "revise": share} for share in (0.05, 0.1)),
        *({"order": "random", "top_p": p} for p in (0.95, 0.98)),
        *({"order": "halton", "top_p": p} for p in (0.95, 0.98)),
        {"order": "random", "token_temperature": 0.9},
    ]
    # One token a step costs most, and tells most where neighbours must agree.
    slow = options if isinstance(truth, RingWalk) else [options[i] for i in (0, 1, 2, 4, 7)]
    return [
        *(Sampler(steps=n, **option) for option in slow),
        *(Sampler(steps=truth.few, **option) for option in options),
        Sampler(steps=truth.few, order="random", schedule="linear"),
    ]


def describe(sampler: Sampler) -> str:
    """What a row changes besides order and steps."""
    words = []
    if sampler.order in ("confidence", "moment"):
        words.append(f"choice temperature {sampler.choice_temperature:g}")
    for name in ("schedule", "token_temperature", "top_p", "revise"):
        if getattr(sampler, name) != getattr(Sampler(), name):
            words.append(f"{name.replace('_t', ' t')} {getattr(sampler, name)}")
    return ", ".join(words)


def draw(truth: Truth, model: MaskGit, sampler: Sampler) -> torch.Tensor:
    """`truth.count` samples (count, h, w), in parts, which changes none of them."""
    h, w = truth.grid
    seeds = torch.arange(truth.count).split(TOKENS // (h * w))
    return torch.cat([sample(model, torch.full((len(s), h, w), model.mask_id), None, sampler, s) for s in seeds])


def draw_by_reference(truth: Truth, model: MaskGit, steps: int) -> torch.Tensor:
    """The same from x-transformers' `generate()` with its defaults."""
    from x_transformers import NonAutoregressiveWrapper

    h, w = truth.grid
    wrapper = NonAutoregressiveWrapper(ForReference(model), mask_id=model.mask_id, steps=steps)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = [wrapper.generate(batch_size=TOKENS // (h * w)) for _ in range(truth.count * h * w // TOKENS)]
    return rearrange(torch.cat(parts), "b (h w) -> b h w", h=h)


def run(truth: Truth, cache: Path | None) -> dict[str, Any]:
    """Everything about one distribution."""
    started = time.process_time()
    models = {
        "oracle": MaskGit(ForeignNet(truth.oracle(), truth.vocab_size, truth.grid)).eval(),
        "trained": train(truth, cache),
    }
    results: dict[str, Any] = {
        "grid": truth.grid,
        "codes": truth.vocab_size,
        "samples": truth.count,
        "target": truth.target,
        "training": dataclasses.asdict(truth.training),
        "likelihood": bound(truth, models["oracle"], models["trained"]),
    }
    print(f"{truth.name}: {results['likelihood']}", flush=True)

    chance = torch.Generator().manual_seed(2)
    sets = [truth.measure(truth.draw(truth.count, chance)) for _ in range(REPEATS)]
    spread = {name: torch.tensor([figures[name] for figures in sets]) for name in sets[0]}
    results["exact samples"] = {name: values.mean().item() for name, values in spread.items()}
    noise = results["exact samples, 95 % below"] = {name: v.quantile(0.95).item() for name, v in spread.items()}

    n = truth.grid[0] * truth.grid[1]
    rows: list[dict[str, Any]] = [
        {"order": s.order, "steps": s.steps, "setting": describe(s), "sampler": s} for s in samplers(truth)
    ]
    if importlib.util.find_spec("x_transformers"):
        for steps in (n, truth.few):
            rows.append({"order": "x-transformers `generate()`", "steps": steps, "setting": "defaults"})
    for row in rows:
        sampler = row.pop("sampler", None)
        for name, model in models.items():
            with torch.no_grad(), autocast(CPU, pick_dtype("auto" if name == "trained" else "fp32", CPU)):
                codes = draw(truth, model, sampler) if sampler else draw_by_reference(truth, model, row["steps"])
            figures = truth.measure(codes)
            row[name] = {key: round(value, 6) for key, value in figures.items()}
            row[name]["reached"] = truth.reached(figures, noise)
        print(truth.name, *row.values(), flush=True)
    results["rows"] = rows
    results["CPU minutes"] = round((time.process_time() - started) / 60, 1)
    return results


def markdown(results: dict[str, Any]) -> str:
    """All tables; each cell is the oracle's figure, then the trained network's."""
    made = results["made"]
    text = [
        "# Samplers on known distributions",
        f"`{made['command']}`, {made['date']}, torch {made['torch']}, threads: {made['threads']}, networks in "
        f"{made['dtype']}. Guidance off. In each cell: the oracle (exact conditional distributions), then the trained "
        "network. The first two rows are sets of as many exact samples: their mean, and what 95 in 100 of them stay "
        "below. The last column names who reaches the target.",
    ]
    for name, truth in results["distributions"].items():
        like, how = truth["likelihood"], truth["training"]
        figures = list(truth["exact samples"])
        text.append(f"## {name[0].upper()}{name[1:]}")
        text.append(
            f"{truth['grid'][0]}x{truth['grid'][1]} tokens of {truth['codes']} codes, {truth['samples']} samples a "
            f"row. Network: dim {how['dim']}, depth {how['depth']}, {how['steps']} steps of "
            f"{TOKENS // math.prod(truth['grid'])} fresh samples. Held-out bound {like['bound']:.4f} ± "
            f"{like['bound error']:.4f} nats a token, entropy {like['entropy']:.4f}; on the same masks the network "
            f"loses {like['excess']:.4f} ± {like['excess error']:.4f} to the oracle. "
            f"{truth['CPU minutes']} CPU minutes in all. Target: {truth['target']}."
        )
        head = ["order", "steps", "setting", *figures, "target"]
        table = [head, ["---"] * len(head)]
        for row, label in (("exact samples", "mean"), ("exact samples, 95 % below", "95 % below")):
            table.append(["exact samples", "", label, *(number(key, truth[row][key]) for key in figures), ""])
        for row in truth["rows"]:
            cells = [f"{number(key, row['oracle'][key])} / {number(key, row['trained'][key])}" for key in figures]
            who = " / ".join(model for model in ("oracle", "trained") if row[model]["reached"])
            table.append([row["order"], str(row["steps"]), row["setting"], *cells, who])
        text.append("\n".join(f"| {' | '.join(line)} |" for line in table))
    return "\n\n".join(text) + "\n"


def number(name: str, value: float) -> str:
    if name == "distinct":
        return f"{value:.0f}"
    return f"{value:.5f}" if name == "energy KL" else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder for the trained networks")
    arguments = parser.parse_args()
    truths: list[Truth] = [Independent(), RingWalk(), Potts()]
    results = {
        "made": {
            "command": "python benchmarks/known_distributions.py",
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "dtype": str(pick_dtype("auto", CPU)).removeprefix("torch."),
        },
        "distributions": {truth.name: run(truth, arguments.cache) for truth in truths},
    }
    (RESULTS / "known-distributions.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "known-distributions.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
