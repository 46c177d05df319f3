"""Commands about a model as a whole: what it can do, and models of other projects."""

from pathlib import Path

from jsonargparse import Namespace

from maskimg.cli.options import Parser, Refused
from maskimg.cli.places import out_directory


def convert(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("source", type=str, help="tokenizer, or with --tokenizer generator, of another project")
    parser.add_argument("--tokenizer", type=str, help="the tokenizer of the generator SOURCE; without it SOURCE is one")
    parser.add_argument("--out", type=str, required=True, help="directory to write")
    parser.add_argument(
        "--to", type=str, default="maskimg", help="format to write: maskimg, or diffusers for a tokenizer"
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="also read .ckpt, .pt, .pth and .bin files, which can contain code; they are opened in a child process",
    )
    parser.add_argument(
        "--pixels",
        type=str,
        help="pixel range of the tokenizer: unit for [0, 1], symmetric for [-1, 1]; by default that of its project",
    )
    parser.add_argument("--heads", type=int, help="attention heads, for a Halton-MaskGIT of an unpublished size")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes of a Google MaskGIT")
    given = parser.parse_args(arguments)
    given.out = out_directory(given.out, {"SOURCE": given.source, "the tokenizer": given.tokenizer})
    if given.tokenizer:
        _convert_generator(given)
    else:
        _convert_tokenizer(given)


def _convert_tokenizer(given: Namespace) -> None:
    from vqgan.export import to_diffusers
    from vqgan.tokenizer import Tokenizer

    if given.to not in ("maskimg", "diffusers"):
        raise Refused(f"--to must be maskimg or diffusers, got `{given.to}`")
    tokenizer = Tokenizer.from_pretrained(given.source, trust_pickle=given.trust_pickle, pixels=given.pixels)
    if given.to == "diffusers":
        to_diffusers(tokenizer, given.out)
    else:
        tokenizer.save_pretrained(given.out)
    millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    print(
        f"done: {tokenizer.vocab_size} codes, {tokenizer.stride} pixels per token side, {millions:.1f} million "
        f"parameters, in {given.out}"
    )


def _convert_generator(given: Namespace) -> None:
    from maskimg.interop.convert import convert_pair
    from maskimg.sampler import describe
    from vqgan import Tokenizer

    if given.to != "maskimg":
        raise Refused("a generator can only be converted to maskimg: leave out --to")
    out = Path(given.out)
    pipeline = convert_pair(
        Tokenizer.from_pretrained(given.tokenizer, trust_pickle=given.trust_pickle, pixels=given.pixels),
        given.source,
        name=out.name,
        trust_pickle=given.trust_pickle,
        heads=given.heads,
        classes=given.classes,
    )
    pipeline.save_pretrained(out)
    millions = sum(p.numel() for p in pipeline.net.parameters()) / 1e6
    print(f"{pipeline.net.architecture}: {millions:.1f} million parameters, {pipeline.image_size} pixels")
    print(f"recipe: {describe(pipeline.recipe)}")
    print(f"done: draw with `maskimg sample --model {out}`, or open it with `maskimg demo --model {out}`")


def info(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("what", type=str, nargs="?", default="emoji-64", help="model, or a PNG that maskimg made")
    given = parser.parse_args(arguments)
    if Path(given.what).is_file():
        _info_picture(given.what)
    else:
        _info_model(given.what)


def _info_picture(path: str) -> None:
    import json

    from maskimg.recipe import read_recipe

    recipe = read_recipe(path)
    if recipe is None:
        raise Refused(f"`{path}` holds no maskimg recipe")
    print(json.dumps(recipe, indent=2, ensure_ascii=False))


def _info_model(name: str) -> None:
    from maskimg.evaluation.card import plainly
    from maskimg.pipeline import Pipeline
    from maskimg.sampler import describe

    pipeline = Pipeline.from_pretrained(name, device="cpu")
    millions = {
        part: sum(p.numel() for p in module.parameters()) / 1e6
        for part, module in (
            ("tokenizer", pipeline.tokenizer),
            ("generator", pipeline.generator.net),
            ("critic", pipeline.critic),
        )
        if module is not None
    }
    h, w = pipeline.grid
    print(f"{pipeline.name}: {pipeline.image_size} pixels, {h}x{w} tokens, {pipeline.tokenizer.vocab_size} codes")
    print("parameters: " + ", ".join(f"{part} {size:.1f} million" for part, size in millions.items()))
    for field, names in pipeline.labels.names.items():
        print(f"{field}: {', '.join(names)}")
    if pipeline.words is not None:
        print(f"prompts: {pipeline.words.summary}")
    if pipeline.source_kind:
        print(f"translates: {pipeline.source_kind}")
    for name, sampler in {"recipe": pipeline.recipe, **pipeline.presets}.items():
        print(f"{name} ({sampler.forwards} forwards): " + describe(sampler))
    for key in ("data", "licence", "measured", "minutes"):
        value = pipeline.about.get(key)
        for part, each in value.items() if isinstance(value, dict) else [("", value)]:
            if plainly(each):
                print(f"{key}{', ' if part else ''}{part}: {plainly(each)}")
