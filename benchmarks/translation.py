"""Pictures from pictures: one emoji style from another, and emoji or flowers in colour from grey ones.

    python benchmarks/translation.py prepare emoji-64.zip runs/styles --source twemoji --target fluent-3d
    maskimg encode runs/styles/target emoji-64 --size 64 --source runs/styles/source --out runs/styles-codes
    maskimg train-generator runs/styles-codes emoji-64 --out runs/to-3d --config configs/translation.yaml
    python benchmarks/translation.py measure runs/styles/target runs/to-3d --source runs/styles/source

    maskimg encode runs/emoji emoji-64 --size 64 --source grey --out runs/grey-codes    # see benchmarks/emoji_64.py
    maskimg train-generator runs/grey-codes emoji-64 --out runs/to-colour --config configs/translation.yaml
    python benchmarks/translation.py measure runs/emoji runs/to-colour --source grey

    maskimg train flowers-64.zip --size 64 --source grey --out runs/colour --minutes 60    # with a tokenizer of its own
    python benchmarks/translation.py measure flowers-64.zip runs/colour --source grey

On held-out pictures; beside the translations stand the sources as they are, which is what a model that copies would
give. The Fréchet distance is in the features of a small classifier of the target pictures; `apart` is the mean
distance in the same features between a translation and the very picture that it is to become. Held-out emoji are new
concepts in both styles. Figures go to benchmarks/results/translation.json, a sheet (source, translation, target) beside
MODEL.
"""

import argparse
import csv
import zipfile
from pathlib import Path

import torch
from emoji_64 import described, record
from tqdm import tqdm

from maskimg.data.pictures import list_pictures, read_pictures
from maskimg.data.source_pictures import read_sources
from maskimg.evaluation.judge import train_judge
from maskimg.evaluation.metrics import frechet_distance
from maskimg.pipeline import Pipeline
from vqgan.images import normalize, sheet, to_pil


def prepare(archive: Path, folder: Path, source: str, target: str) -> None:
    """Unpack the emoji that both styles draw into FOLDER/source and FOLDER/target, by equal names."""
    with zipfile.ZipFile(archive) as zipped:
        drawn = {source: {}, target: {}}
        for row in described(zipped):
            if row["style"] in drawn:
                drawn[row["style"]][f"{row['codepoints']}-{row['tone']}"] = row
        names = sorted(drawn[source].keys() & drawn[target].keys())
        for kind, style in (("source", source), ("target", target)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                (folder / kind / f"{name}.webp").write_bytes(zipped.read(drawn[style][name]["file"]))
    with (folder / "target" / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "split"])
        rows = [drawn[target][name] for name in names]
        writer.writerows([f"{name}.webp", row["name"], row["split"]] for name, row in zip(names, rows, strict=True))
    print(f"{len(names)} pairs in {folder}")


def measure(where: str, model: str, source: str, steps: int) -> None:
    """Translations of the held-out pictures beside their sources and targets."""
    pipeline = Pipeline.from_pretrained(model)
    work = Path(f"{model}.measured")
    pictures = read_pictures(list_pictures(where), pipeline.image_size, work / "pictures", progress=tqdm)
    pictures, sources = read_sources(source, pictures, work, progress=tqdm)
    train, unseen = pictures.part(held_out=False), pictures.part(held_out=True)
    judge = train_judge(train.pixels, train.labels[:, 0], len(next(iter(train.fields.values()))), steps, progress=tqdm)

    given, targets = normalize(sources.part(held_out=True).pixels), normalize(unseen.pixels)
    drawn = []
    for i, image in enumerate(tqdm(given, desc="translating")):
        drawn.append(pipeline.translate(to_pil(image), seeds=i).codes)
    images = pipeline.decode(torch.cat(drawn)).cpu()

    real, whole = judge.features(targets), judge.features(train.pixels)
    restored = torch.cat([pipeline.decode(pipeline.tokenizer.encode(part)).cpu() for part in targets.split(32)])
    for name, kind in (("the sources", given), ("translations", images), ("targets through the tokenizer", restored)):
        features = judge.features(kind)
        figures = {
            "pictures": len(kind),
            "frechet_distance": frechet_distance(features, whole),
            "apart": (features - real).norm(dim=1).mean().item(),
        }
        record("translation", f"{Path(model).name}: {name}", figures)
    shown = torch.linspace(0, len(given) - 1, min(24, len(given))).long().tolist()
    rows = [[to_pil(kind[i]) for i in shown] for kind in (given, images, targets)]
    halves = [row[start : start + 12] for start in range(0, len(shown), 12) for row in rows]
    sheet([image for row in halves for image in row], 12).save(f"{model}-translations.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    verb = verbs.add_parser("prepare")
    verb.add_argument("archive", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--source", default="twemoji")
    verb.add_argument("--target", default="fluent-3d")
    verb = verbs.add_parser("measure")
    verb.add_argument("where")
    verb.add_argument("model")
    verb.add_argument("--source", required=True)
    verb.add_argument("--steps", type=int, default=600, help="of the judge's training")
    options = vars(parser.parse_args())
    {"prepare": prepare, "measure": measure}[options.pop("verb")](**options)


if __name__ == "__main__":
    main()
