"""Tokenizers compared: quantizers, strides and codebook sizes; the defaults; two peers; a discriminator or none.

    python benchmarks/image_tokenizers.py table DATA    # DATA: emoji-64.zip, flowers-64.zip, fashion-mnist.tar
    python benchmarks/image_tokenizers.py defaults DATA # `maskimg train-tokenizer` as it comes
    python benchmarks/image_tokenizers.py discriminator DATA
    PYTHONPATH=PEERS python benchmarks/image_tokenizers.py muse DATA    # muse-maskgit-pytorch's VQGanVAE
    python benchmarks/image_tokenizers.py speed         # diffusers' VQModel

Each writes results/tokenizers-NAME.json; `report` makes results/tokenizers.md of them. Quality is measured on held-out
pictures. The Fréchet distance is in the features of a small classifier trained on the same data, not an FID; beside
it stands its floor, held-out pictures against training pictures.
"""

import argparse
import csv
import dataclasses
import gc
import gzip
import io
import json
import math
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from maskimg.data.pictures import Pictures, list_pictures, read_pictures
from maskimg.evaluation.judge import Judge, train_judge
from maskimg.evaluation.metrics import code_usage, frechet_distance
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.training.folder import working_directory
from maskimg.training.loop.run import Budget, batch_indices
from maskimg.training.settings import TokenizerTraining
from maskimg.training.tokenizer import train_tokenizer
from vqgan import Tokenizer, TokenizerConfig
from vqgan.images import normalize, paired_sheet, to_pil, to_tensor
from vqgan.similarity import psnr

RESULTS = Path(__file__).parent / "results"
DATA = ("emoji-64", "flowers-64", "fashion-mnist")
CHANNELS = {4: (64, 128), 8: (48, 96, 192)}
LEVELS = {1024: (8, 5, 5, 5), 4096: (8, 8, 8, 8)}  # 1,000 codes: FSQ has no natural 1,024
QUANTIZERS = ("efsq", "fsq", "vq", "simvq", "lfq", "bsq")
TRAINING = TokenizerTraining(batch_size=32, ema_decay=0.99)


# Data: archives, decoded once.


def read(folder: Path, name: str) -> Pictures:
    if name == "fashion-mnist":
        return read_fashion(folder / "fashion-mnist.tar")
    pixels, names, classes, held_out = [], [], [], []
    with zipfile.ZipFile(folder / f"{name}.zip") as zipped:
        rows = list(csv.DictReader(io.TextIOWrapper(zipped.open("labels.csv"), encoding="utf-8")))
        for row in tqdm(rows, desc=name):
            image = Image.open(io.BytesIO(zipped.read(row["file"]))).convert("RGB")
            pixels.append(((to_tensor(image) + 1) * 127.5).round().byte())
            names.append(row["file"])
            classes.append(row["name"])
            held_out.append(row["split"] != "train")
    return pictures_of(torch.stack(pixels), classes, held_out, names)


def read_fashion(path: Path) -> Pictures:
    """Fashion-MNIST, its 28 grey pixels framed to 32."""
    pixels, classes, held_out = [], [], []
    with tarfile.open(path) as archive:
        for part in ("train", "t10k"):
            images = gzip.decompress(archive.extractfile(f"{part}-images-idx3-ubyte.gz").read())[16:]
            labels = gzip.decompress(archive.extractfile(f"{part}-labels-idx1-ubyte.gz").read())[8:]
            grey = torch.frombuffer(bytearray(images), dtype=torch.uint8).reshape(-1, 1, 28, 28)
            pixels.append(F.pad(grey, (2, 2, 2, 2)).expand(-1, 3, -1, -1))
            classes += [f"{label}" for label in labels]
            held_out += [part == "t10k"] * len(grey)
    return pictures_of(torch.cat(pixels), classes, held_out, [str(i) for i in range(len(classes))])


def pictures_of(pixels: torch.Tensor, classes: list[str], held_out: list[bool], names: list[str]) -> Pictures:
    known = sorted(set(classes))
    labels = torch.tensor([known.index(each) for each in classes])[:, None]
    return Pictures(pixels, labels, {"class": known}, torch.tensor(held_out), names, "archive")


def judge_of(pictures: Pictures, steps: int) -> tuple[Judge, float]:
    """A classifier of the training part, and the distance from there to the held-out part: the floor."""
    train, unseen = pictures.part(held_out=False), pictures.part(held_out=True)
    judge = train_judge(train.pixels, train.labels[:, 0], len(pictures.fields["class"]), steps, progress=tqdm)
    some = torch.randperm(len(train.pixels), generator=torch.Generator().manual_seed(0))[:2000]
    floor = frechet_distance(judge.features(train.pixels[some]), judge.features(unseen.pixels[:2000]))
    return judge, floor


# The table.


@dataclasses.dataclass(frozen=True)
class Cell:
    data: str
    quantizer: str
    stride: int
    codes: int

    @property
    def config(self) -> TokenizerConfig:
        return TokenizerConfig(
            quantizer=self.quantizer,
            levels=LEVELS[self.codes],
            codebook_size=self.codes,
            channels=CHANNELS[self.stride],
        )


def table(folder: Path, steps: int, judge_steps: int, chosen: list[str], out: Path) -> None:
    """Every cell in order of usefulness; what `out` already holds is kept, so that a run may be stopped."""
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    done = {(row["data"], row["quantizer"], row["stride"], row["codes"]) for row in rows}
    for name in chosen:
        cells = [Cell(name, q, stride, size) for size in (1024, 4096) for stride in CHANNELS for q in QUANTIZERS]
        cells = [cell for cell in cells if dataclasses.astuple(cell) not in done]
        if not cells:
            continue
        pictures = read(folder, name)
        judge, floor = judge_of(pictures, judge_steps)
        for cell in cells:
            with tempfile.TemporaryDirectory() as scratch:
                started = time.perf_counter()
                tokenizer, run = train_tokenizer(pictures, cell.config, TRAINING, Budget(steps=steps), scratch)
                seconds = time.perf_counter() - started
                if run.stopped:
                    return
            rows.append(
                dataclasses.asdict(cell)
                | measured(tokenizer, pictures, judge)
                | {"frechet_floor": floor, "training_seconds": seconds, "steps": steps}
            )
            print(json.dumps(rows[-1]), flush=True)
            write(out, {"rows": rows})


def measured(tokenizer: Tokenizer, pictures: Pictures, judge: Judge) -> dict[str, float]:
    train, unseen = pictures.part(held_out=False), pictures.part(held_out=True)
    images = normalize(unseen.pixels[:1000])
    encode, decode = [], []
    codes, restored = [], []
    for part in images.split(50):
        started = time.perf_counter()
        codes.append(tokenizer.encode(part))
        encoded = time.perf_counter()
        with autocast(pick_device(), pick_dtype("auto", pick_device())):
            restored.append(tokenizer.decode(codes[-1]))
        decode.append(len(part) / (time.perf_counter() - encoded))
        encode.append(len(part) / (encoded - started))
    restored = torch.cat(restored)
    many = torch.cat([tokenizer.encode(normalize(part)) for part in train.pixels[:4000].split(100)])
    usage, entropy = code_usage(many, tokenizer.vocab_size)
    return {
        "parameters_million": sum(p.numel() for p in tokenizer.parameters()) / 1e6,
        "psnr_db": psnr(restored, images).mean().item(),
        "frechet_distance": frechet_distance(judge.features(restored), judge.features(images)),
        "codes_used": usage,
        "entropy_bits": entropy,
        "bits_per_picture": codes[0][0].numel() * math.log2(tokenizer.vocab_size),
        "encode_per_second": statistics.median(encode),
        "decode_per_second": statistics.median(decode),
    }


# The defaults, as a user meets them.


def defaults(folder: Path, out: Path) -> None:
    """`maskimg train-tokenizer` as it comes: codes of all training pictures, PSNR of at most 1,000 held-out ones."""
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    for name, size in DEFAULTS:
        sized = f" --size {size}" if size else ""
        command = f"maskimg train-tokenizer {SOURCES[name]} --preset cpu{sized}"
        if command in [row["command"] for row in rows]:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            source = SOURCES[name].replace("DATA", str(folder)).replace("DIR", scratch)
            if name == "fashion-mnist":
                unpack_fashion(folder / "fashion-mnist.tar", Path(scratch, "FashionMNIST", "raw"))
            trained = Path(scratch, "tokenizer")
            options = ["--preset", "cpu", *sized.split(), "--out", str(trained)]
            subprocess.run([sys.executable, "-m", "maskimg", "train-tokenizer", source, *options], check=True)
            tokenizer, work = Tokenizer.from_pretrained(trained), working_directory(trained)
            cache = work / "pictures"
            pixels = json.loads((cache / "pictures.json").read_text())["size"]
            pictures = read_pictures(list_pictures(source), pixels, cache)
            steps = json.loads((work / "tokenizer" / "log.jsonl").read_text().splitlines()[-1])["step"]
            train, unseen = pictures.part(held_out=False).pixels, pictures.part(held_out=True).pixels
            codes = torch.cat([tokenizer.encode(normalize(part)) for part in tqdm(train.split(100))])
            images = normalize(unseen[:1000])
            restored = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in images.split(100)])
        usage, entropy = code_usage(codes, tokenizer.vocab_size)
        rows.append(
            {
                "command": command,
                "pixels": pixels,
                "stride": tokenizer.stride,
                "codes": tokenizer.vocab_size,
                "steps": steps,
                "training_pictures": len(train),
                "codes_used": usage,
                "entropy_bits": entropy,
                "psnr_db": psnr(restored, images).mean().item(),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        write(out, {"rows": rows})


SOURCES = {
    "emoji-64": "DATA/emoji-64.zip",
    "flowers-64": "DATA/flowers-64.zip",
    "fashion-mnist": "torchvision://FashionMNIST?root=DIR",
}
DEFAULTS = (("flowers-64", 64), ("emoji-64", 64), ("fashion-mnist", 0), ("flowers-64", 0), ("emoji-64", 0))


def unpack_fashion(path: Path, raw: Path) -> None:
    """As torchvision wants it."""
    raw.mkdir(parents=True)
    with tarfile.open(path) as archive:
        for name in archive.getnames():
            if name.endswith(".gz"):
                (raw / name.removesuffix(".gz")).write_bytes(gzip.decompress(archive.extractfile(name).read()))


# Beside muse-maskgit-pytorch's VQGanVAE: the same pictures, the same wall-clock.


def muse(folder: Path, minutes: float, out: Path) -> None:
    """As it comes (LFQ of 65,536 codes), and with our number of codes; its perceptual and adversarial losses off."""
    from muse_maskgit_pytorch import VQGanVAE

    pictures = read(folder, "emoji-64")
    train, unseen = pictures.part(held_out=False), normalize(pictures.part(held_out=True).pixels[:1000])
    device = pick_device()
    rows = []
    for size in (65536, 4096):
        torch.manual_seed(0)
        vae = VQGanVAE(dim=48, layers=3, codebook_size=size, use_vgg_and_gan=False).to(device)
        optimizer = torch.optim.Adam(vae.parameters(), lr=3e-4)  # its trainer's default
        started, steps = time.perf_counter(), 0
        with tqdm(desc=f"VQGanVAE {size}") as bar:
            while time.perf_counter() - started < 60 * minutes:
                chosen = batch_indices(0, steps, len(train.pixels), TRAINING.batch_size)
                loss = vae(normalize(train.pixels[chosen]).to(device), return_loss=True)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                bar.update()
        vae.eval()
        with torch.no_grad():
            encoded = [vae.encode(part.to(device)) for part in unseen.split(50)]
            restored = torch.cat([vae.decode(fmap).clamp(-1, 1).cpu() for fmap, _, _ in encoded])
            some = train.pixels[:4000].split(50)
            many = torch.cat([vae.encode(normalize(part).to(device))[1].cpu() for part in some])
        usage, entropy = code_usage(many, size)
        parameters = sum(p.numel() for p in vae.parameters()) / 1e6
        rows.append(row_of(f"VQGanVAE, LFQ {size}", steps, parameters, restored, unseen, usage, entropy))
    training = dataclasses.replace(TRAINING, batch_size=32)
    for quantizer in ("fsq", "vq", "bsq"):
        cell = Cell("emoji-64", quantizer, 8, 4096)
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer, run = train_tokenizer(pictures, cell.config, training, Budget(minutes=minutes), scratch)
        restored = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in unseen.split(50)])
        many = torch.cat([tokenizer.encode(normalize(part)) for part in train.pixels[:4000].split(50)])
        usage, entropy = code_usage(many, tokenizer.vocab_size)
        parameters = sum(p.numel() for p in tokenizer.parameters()) / 1e6
        rows.append(row_of(f"maskimg, {quantizer} 4096", run.step, parameters, restored, unseen, usage, entropy))
    write(out, {"minutes": minutes, "rows": rows})


def row_of(name, steps, parameters, restored, images, usage, entropy) -> dict:
    row = {
        "name": name,
        "steps": steps,
        "parameters_million": parameters,
        "psnr_db": psnr(restored, images).mean().item(),
        "codes_used": usage,
        "entropy_bits": entropy,
    }
    print(json.dumps(row), flush=True)
    return row


# With and without a discriminator.


def discriminator(folder: Path, minutes: float, judge_steps: int, weight: float, out: Path) -> None:
    """The same tokenizer twice, and out/tokenizers-discriminator.png of held-out pictures: original, without, with."""
    pictures = read(folder, "emoji-64")
    judge, floor = judge_of(pictures, judge_steps)
    unseen = normalize(pictures.part(held_out=True).pixels)
    shown = unseen[torch.linspace(0, len(unseen) - 1, 16).long()]
    columns, rows = [[to_pil(image) for image in shown]], []
    base = dataclasses.replace(TRAINING, perceptual_weight=0.5)
    for name, training in (
        ("without", base),
        ("with", dataclasses.replace(base, adversarial_weight=weight, adversarial_start=0.4)),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            cell = Cell("emoji-64", "fsq", 8, 4096)
            tokenizer, run = train_tokenizer(pictures, cell.config, training, Budget(minutes=minutes), scratch)
        restored = tokenizer.decode(tokenizer.encode(shown))
        columns.append([to_pil(image) for image in restored])
        sharp = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in unseen[:1000].split(50)])
        rows.append(
            {"name": name, "steps": run.step, "sharpness": sharpness(sharp) / sharpness(unseen[:1000])}
            | measured(tokenizer, pictures, judge)
            | {"frechet_floor": floor}
        )
        print(json.dumps(rows[-1]), flush=True)
    sheet = Path("out") / out.with_suffix(".png").name  # other people's pictures: not beside the figures
    sheet.parent.mkdir(exist_ok=True)
    paired_sheet([list(column) for column in zip(*columns, strict=True)], 16).save(sheet)
    write(out, {"minutes": minutes, "weight": weight, "rows": rows})


def sharpness(images: torch.Tensor) -> float:
    """Mean absolute Laplacian of images (b, 3, H, W): what blur takes away."""
    smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (images - smooth).abs().mean().item()


# Beside diffusers' VQModel: speed at an equal number of parameters.


def speed(rounds: int, size: int, out: Path) -> None:
    """Encode and decode of 16 pictures, interleaved; both in bf16, although `Tokenizer.encode` itself stays in fp32.

    diffusers' VQModel has the widths that give it about as many parameters as ours.
    """
    contestants = {name: contestant(name, size) for name in CONTESTANTS}
    for encode, decode, _ in contestants.values():
        for _ in range(2):
            encode(), decode()
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contestants}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name, (encode, decode, _) in contestants.items():
            for work, kept in zip((encode, decode), times[name], strict=True):
                started = time.perf_counter()
                work()
                kept.append(time.perf_counter() - started)
    rows = []
    for name, (encode, decode) in times.items():
        peak = subprocess.run(
            [sys.executable, __file__, "peak", name, "--size", str(size)], capture_output=True, text=True, check=True
        )
        rows.append(
            {
                "name": name,
                "parameters_million": contestants[name][2],
                "encode_per_second": BATCH / statistics.median(encode),
                "decode_per_second": BATCH / statistics.median(decode),
                "peak_megabytes": float(peak.stdout),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    write(out, {"size": size, "batch": BATCH, "rounds": rounds, "rows": rows})


BATCH = 16
CONTESTANTS = {
    f"{library}, stride {stride}": (library, stride)
    for stride in (4, 8)
    for library in ("maskimg", "diffusers VQModel", "diffusers VQModel channels_last")
}


def contestant(name: str, size: int) -> tuple[Callable, Callable, float]:
    """Encode, decode, and millions of parameters."""
    device = pick_device()
    library, stride = CONTESTANTS[name]
    images = torch.rand(BATCH, 3, size, size, device=device) * 2 - 1
    if library == "maskimg":
        ours = Tokenizer(TokenizerConfig(channels=CHANNELS[stride], levels=LEVELS[4096])).to(device).eval()
        return *_ours(ours, images, device), _million(ours)
    from diffusers import VQModel

    widths = {4: (64, 64, 96), 8: (64, 64, 96, 160)}[stride]
    theirs = VQModel(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=1,
        latent_channels=8,
        num_vq_embeddings=4096,
        mid_block_add_attention=False,
        norm_num_groups=32,
    )
    theirs = theirs.to(device).eval()
    if "channels_last" in library:
        theirs, images = (
            theirs.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    return *_diffusers(theirs, images, device), _million(theirs)


def peak(name: str, size: int) -> None:
    """Print what encoding and decoding add to this process's memory at most, in MB (Linux)."""
    encode, decode, _ = contestant(name, size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _memory("VmRSS")
    encode(), decode()
    print((_memory("VmHWM") - before) / 1024)


def _memory(key: str) -> int:
    """Of this process, in KB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _ours(tokenizer: Tokenizer, images: torch.Tensor, device: torch.device) -> tuple[Callable, Callable]:
    codes = tokenizer.encode(images)

    def decode() -> torch.Tensor:
        with autocast(device, torch.bfloat16):
            return tokenizer.decode(codes)

    @torch.no_grad()
    def encode() -> torch.Tensor:  # as `encode` does, but in bf16, so that both do the same
        with autocast(device, torch.bfloat16):
            return tokenizer.quantizer(tokenizer.encoder(images))[1]

    return encode, decode


def _diffusers(model, images: torch.Tensor, device: torch.device) -> tuple[Callable, Callable]:
    with torch.no_grad():
        latents = model.encode(images).latents

    @torch.no_grad()
    def encode() -> torch.Tensor:
        with autocast(device, torch.bfloat16):
            return model.quantize(model.encode(images).latents)[2][2]

    @torch.no_grad()
    def decode() -> torch.Tensor:
        with autocast(device, torch.bfloat16):
            return model.decode(latents).sample

    return encode, decode


def _million(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


# What is written.


COLUMNS = {
    "table": {
        "quantizer": "",
        "stride": "",
        "codes": ",",
        "bits_per_picture": ".0f",
        "psnr_db": ".2f",
        "frechet_distance": ".2f",
        "codes_used": ".0%",
        "entropy_bits": ".2f",
        "parameters_million": ".2f",
        "encode_per_second": ".0f",
        "decode_per_second": ".0f",
    },
    "defaults": {
        "command": "",
        "pixels": "",
        "stride": "",
        "codes": ",",
        "steps": ",",
        "training_pictures": ",",
        "codes_used": ".1%",
        "entropy_bits": ".2f",
        "psnr_db": ".2f",
    },
    "muse": {
        "name": "",
        "steps": ",",
        "parameters_million": ".2f",
        "psnr_db": ".2f",
        "codes_used": ".1%",
        "entropy_bits": ".2f",
    },
    "discriminator": {
        "name": "",
        "steps": ",",
        "psnr_db": ".2f",
        "sharpness": ".2f",
        "frechet_distance": ".2f",
        "codes_used": ".0%",
    },
    "speed": {
        "name": "",
        "parameters_million": ".2f",
        "encode_per_second": ".0f",
        "decode_per_second": ".0f",
        "peak_megabytes": ".0f",
    },
}


def report() -> None:
    """results/tokenizers.md, from whatever of the five has been measured."""
    lines = ["# Tokenizers compared", "", "Written by `python benchmarks/image_tokenizers.py report`; see there.", ""]
    for name, columns in COLUMNS.items():
        path = RESULTS / f"tokenizers-{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        about = ", ".join(f"{key} {value}" for key, value in found.items() if key != "rows")
        lines += [f"## {name.capitalize()}", "", f"`python benchmarks/image_tokenizers.py {name}`: {about}.", ""]
        for data in dict.fromkeys(row.get("data", "") for row in found["rows"]):
            rows = [row for row in found["rows"] if row.get("data", "") == data]
            if data:
                rows.sort(key=lambda row: (row["codes"], row["stride"], QUANTIZERS.index(row["quantizer"])))
                floor = rows[0]["frechet_floor"]
                lines += [f"### {data}", "", f"{rows[0]['steps']} steps each; floor of the distance {floor:.2f}.", ""]
            lines += [" | ".join(["", *(key.replace("_", " ") for key in columns), ""]).strip()]
            lines += ["|" + " --- |" * len(columns)]
            lines += [
                " | ".join(["", *(format(row[key], form) for key, form in columns.items()), ""]).strip() for row in rows
            ]
            lines.append("")
    (RESULTS / "tokenizers.md").write_text("\n".join(lines), encoding="utf-8")


def write(path: Path, result: dict) -> None:
    about = {"date": date.today().isoformat(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"machine": platform.machine()} | result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report")
    for name in COLUMNS:
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=RESULTS / f"tokenizers-{name}.json")
        if name != "speed":
            command.add_argument("data", type=Path)
    commands.choices["table"].add_argument("--steps", type=int, default=400)
    commands.choices["table"].add_argument("--only", nargs="+", choices=DATA, default=list(DATA))
    for name in ("table", "discriminator"):
        commands.choices[name].add_argument("--judge-steps", type=int, default=600)
    for name in ("muse", "discriminator"):
        commands.choices[name].add_argument("--minutes", type=float, default=5)
    commands.choices["discriminator"].add_argument("--weight", type=float, default=0.05)
    commands.choices["speed"].add_argument("--rounds", type=int, default=15)
    commands.add_parser("peak").add_argument("name", choices=CONTESTANTS)
    for name in ("speed", "peak"):
        commands.choices[name].add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    match given.command:
        case "table":
            table(given.data, given.steps, given.judge_steps, given.only, given.out)
        case "defaults":
            defaults(given.data, given.out)
        case "muse":
            muse(given.data, given.minutes, given.out)
        case "discriminator":
            discriminator(given.data, given.minutes, given.judge_steps, given.weight, given.out)
        case "speed":
            speed(given.rounds, given.size, given.out)
        case "peak":
            peak(given.name, given.size)
        case "report":
            report()


if __name__ == "__main__":
    main()
