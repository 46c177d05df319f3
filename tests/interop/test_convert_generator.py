"""Other people's generator files become whole models, and whatever is wrong with a file is said in a sentence."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_generators import SIZES, google_params, halton_state, write_flax, write_pth, write_safetensors
from safetensors.torch import save_file

from maskimg.cli.main import main
from maskimg.interop.convert import GOOGLE_RECIPE, HALTON_HEADS, HALTON_RECIPE, convert_pair, read_generator
from maskimg.interop.imagenet import class_names, unique
from maskimg.networks.google import GoogleConfig
from maskimg.networks.halton import HaltonConfig
from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from vqgan import Tokenizer, TokenizerConfig
from vqgan.files import ModelError

GOOGLE = {"classes": SIZES.classes}
HALTON = {"heads": SIZES.heads}
PICKLED: dict[str, Any] = {"heads": SIZES.heads, "trust_pickle": True}


def make_tokenizer(levels: tuple[int, ...] = (4, 3)) -> Tokenizer:
    """12 codes as the miniatures have, 4 pixels a token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TokenizerConfig(levels=levels, channels=(16, 16), encoder_blocks=1, decoder_blocks=1)
        return Tokenizer(config).eval()


@pytest.fixture
def google(tmp_path) -> Path:
    return write_flax(google_params(), tmp_path / "maskgit_checkpoint")


@pytest.fixture
def halton(tmp_path) -> Path:
    return write_safetensors(halton_state(), tmp_path / "halton.safetensors")


@pytest.fixture
def pickled(tmp_path) -> Path:
    return write_pth(halton_state(), tmp_path / "halton.pth")


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    return sentence


def numbers(tensors) -> torch.Tensor:
    """All of them, in order of size."""
    return torch.cat([torch.as_tensor(tensor).flatten() for tensor in tensors]).sort().values


def leaves(tree: dict) -> list:
    return [leaf for value in tree.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]


# ----------------------------------------------------------------------------- whole files


def test_every_number_of_a_google_file_is_used_exactly_once(google):
    net = read_generator(google, **GOOGLE)
    assert net.config == GoogleConfig(12, (4, 4), (5,), 24, 2, 3, 40)
    assert torch.equal(numbers(net.state_dict().values()), numbers(leaves(google_params())))


def test_every_number_of_a_halton_file_is_used_exactly_once_but_for_the_tied_head(halton):
    net = read_generator(halton, **HALTON)
    assert net.config == HaltonConfig(12, (4, 4), (5,), 24, 2, 3, 40, 1)
    state = halton_state()
    del state["head.weight"]
    assert torch.equal(numbers(net.state_dict().values()), numbers(state.values()))


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "_orig_mod.module."])
def test_names_may_carry_what_distributed_training_and_compiling_put_before_them(tmp_path, halton, prefix):
    other = read_generator(write_pth(halton_state(), tmp_path / "other.pth", prefix=prefix), **PICKLED)
    for name, tensor in read_generator(halton, **HALTON).state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_a_halton_file_may_have_no_registers(tmp_path):
    state = {name: tensor for name, tensor in halton_state().items() if name != "reg_tokens.weight"}
    net = read_generator(write_safetensors(state, tmp_path / "net.safetensors"), **HALTON)
    assert net.config.registers == 0
    assert net(torch.zeros(1, 4, 4, dtype=torch.int64)).shape == (1, 4, 4, 12)


def test_half_precision_weights_become_single(tmp_path):
    half = {name: tensor.half() for name, tensor in halton_state().items()}
    net = read_generator(write_safetensors(half, tmp_path / "half.safetensors"), **HALTON)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("dim, depth", HALTON_HEADS)
def test_the_heads_of_the_published_sizes_are_known(dim, depth):
    with torch.device("meta"):
        config = HaltonConfig(dim=dim, depth=depth, heads=HALTON_HEADS[dim, depth])
    published = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}
    assert config.heads == published[dim]


def test_heads_that_were_not_given_are_looked_up_by_width_and_depth(tmp_path):
    sizes = SIZES._replace(dim=384, depth=6, heads=6, hidden=8)
    path = write_safetensors(halton_state(sizes), tmp_path / "tiny.safetensors")
    assert read_generator(path).config.heads == 6


# ----------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("kind", ["google", "halton"])
def test_a_converted_model_is_saved_and_read_again_unchanged(kind, request, tmp_path):
    options = GOOGLE if kind == "google" else HALTON
    pipeline = convert_pair(make_tokenizer(), request.getfixturevalue(kind), **options)
    pipeline.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32")
    assert type(again.net) is type(pipeline.net)
    assert again.net.config == pipeline.net.config
    assert again.recipe == pipeline.recipe == (GOOGLE_RECIPE if kind == "google" else HALTON_RECIPE)
    first, second = (one.generate("3", seeds=5, count=2).codes for one in (pipeline, again))
    assert torch.equal(first, second)


def test_a_generator_of_an_unknown_architecture_is_refused(tmp_path, google):
    pipeline = convert_pair(make_tokenizer(), google, **GOOGLE)
    pipeline.net.__class__ = type("Newer", (type(pipeline.net),), {"architecture": "newer"})
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="generator of the unknown architecture `newer`: upgrade maskimg"):
        Pipeline.from_pretrained(tmp_path / "model")


def test_our_own_models_name_no_architecture(tmp_path):
    from tiny import tiny_pipeline

    tiny_pipeline().save_pretrained(tmp_path / "model")
    assert "architecture" not in (tmp_path / "model" / "generator" / "config.json").read_text()


def test_the_tokenizer_must_have_the_generators_codes(google):
    with pytest.raises(ModelError, match="draws 12 codes, but the tokenizer has 16: give the tokenizer that"):
        convert_pair(make_tokenizer((4, 4)), google, **GOOGLE)


def test_a_google_model_draws_nothing_without_a_class_and_with_guidance(google):
    pipeline = convert_pair(make_tokenizer(), google, **GOOGLE)
    with pytest.raises(ValueError, match="draws nothing without a class: give one, such as `0`"):
        pipeline.generate()
    with pytest.raises(ValueError, match="guidance must be 1, got 3"):
        pipeline.generate("2", sampler=pipeline.recipe.__class__(guidance=3.0))


def test_a_halton_model_draws_without_a_class_and_is_guided(halton):
    pipeline = convert_pair(make_tokenizer(), halton, **HALTON)
    plain = pipeline.recipe.__class__(steps=4)
    assert pipeline.generate(seeds=1, sampler=plain).codes.shape == (1, 4, 4)
    guided = pipeline.recipe.__class__(steps=4, guidance=6.0)
    codes = [pipeline.generate("2", seeds=range(4), sampler=sampler).codes for sampler in (plain, guided)]
    assert not torch.equal(*codes)


@pytest.mark.parametrize("kind, first", [("google", "0"), ("halton", "")])
def test_the_demo_offers_anything_only_where_a_model_can_draw_it(kind, first, request):
    import gradio

    from maskimg_apps.demo.controls import make_controls
    from maskimg_apps.demo.runs import label_key

    pipeline = convert_pair(make_tokenizer(), request.getfixturevalue(kind), **(GOOGLE if kind == "google" else HALTON))
    with gradio.Blocks():
        dropdown = make_controls(pipeline)[label_key("class")]
    values = [value for _, value in dropdown.choices]
    assert ("" in values) == (kind == "halton")
    assert dropdown.value == values[0] == first


def test_a_thousand_classes_have_imagenets_names(google, tmp_path):
    path = write_flax(google_params(SIZES._replace(classes=1000)), tmp_path / "imagenet")
    pipeline = convert_pair(make_tokenizer(), path)
    condition = pipeline.labels.encode("goldfish")
    assert condition is not None and condition.tolist() == [[1]]


def test_imagenets_names_are_a_thousand_different_ones_in_the_usual_order():
    names = class_names(1000)
    assert len(set(names)) == 1000
    assert (names[0], names[207], names[404], names[850]) == ("tench", "golden retriever", "airliner", "teddy")
    assert unique(["crane", "maillot", "crane"]) == ["crane (0)", "maillot", "crane (2)"]


# ----------------------------------------------------------------------------- the command


@pytest.mark.parametrize("kind", ["google", "halton"])
def test_a_converted_model_is_drawn_with_by_the_commands(kind, request, tokenizer, tmp_path, capsys):
    own = ["--classes", "5"] if kind == "google" else ["--trust-pickle", "--heads", "3"]
    source = request.getfixturevalue("google" if kind == "google" else "pickled")
    model, out = tmp_path / "model", tmp_path / "out"
    arguments = ["convert", source, "--tokenizer", tokenizer, "--out", model, *own]
    assert main([str(argument) for argument in arguments]) == 0
    assert f"{kind}-maskgit: " in capsys.readouterr().out

    main(["info", str(model)])
    assert "16 pixels, 4x4 tokens, 12 codes" in capsys.readouterr().out
    arguments = ["sample", "--model", model, "--out", out, "--count", 2, "--label", "3", "--dtype", "fp32"]
    assert main([str(argument) for argument in arguments]) == 0
    assert sorted(path.name for path in out.glob("*.png")) == ["000000.png", "000001.png"]
    recipe = read_recipe(out / "000000.png")
    assert recipe["label"] == {"class": "3"}
    assert recipe["sampler"]["order"] == ("confidence" if kind == "google" else "halton")


def test_the_commands_refuse_to_guide_a_google_model_and_write_nothing(google, tokenizer, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "out"
    convert_pair(Tokenizer.from_pretrained(tokenizer), google, **GOOGLE).save_pretrained(model)
    asked = ["sample", "--model", model, "--out", out, "--count", 1]
    assert "guidance must be 1, got 2.0" in refused(capsys, *asked, "--label", "1", "--guidance", "2")
    assert "give one, such as `0`" in refused(capsys, *asked)
    assert not out.exists()


def test_a_folder_of_other_things_is_not_replaced(google, tokenizer, tmp_path, capsys):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years of work")
    said = refused(capsys, "convert", google, "--tokenizer", tokenizer, "--out", tmp_path / "papers", "--classes", "5")
    assert "holds `thesis.txt`, which maskimg did not write there: choose another place" in said
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "years of work"


def test_the_command_refuses_what_it_cannot_read(google, tokenizer, tmp_path, capsys):
    asked = ["--tokenizer", tokenizer, "--out", tmp_path / "model"]
    assert "there is no file" in refused(capsys, "convert", tmp_path / "nowhere", *asked)
    assert "is a directory: name the file in it" in refused(capsys, "convert", tmp_path, *asked)
    assert "too few for 1000 classes" in refused(capsys, "convert", google, *asked)
    asked = ["--tokenizer", tmp_path / "nowhere", "--out", tmp_path / "model"]
    assert "there is no model directory" in refused(capsys, "convert", google, *asked)
    assert not (tmp_path / "model").exists()


# ----------------------------------------------------------------------------- what is wrong with a file


class Harmful:
    """Unpickled, this makes a file: what a malicious checkpoint would do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_not_opened_without_the_word_and_runs_nothing_with_it(tmp_path, pickled):
    with pytest.raises(ModelError, match="--trust-pickle"):
        read_generator(pickled)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"model_state_dict": Harmful(tmp_path / "touched")}, protocol=2))
    with pytest.raises(ModelError, match=r"bad\.pth"):
        read_generator(tmp_path / "bad.pth", trust_pickle=True)
    assert not (tmp_path / "touched").exists()


def without(name: str) -> Callable[[dict], None]:
    return lambda state: state.pop(name)


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[dict], None]:
    return lambda state: state.update({name: tensor})


LAYER = "transformer.layers.1."


@pytest.mark.parametrize(
    "change, sentence",
    [
        (without("cls_emb.weight"), "there is no `cls_emb.weight`"),
        (without("head.bias"), "there is no `head.bias`"),
        (without("head.weight"), "there is no `head.weight`"),
        (without(LAYER + "ff.w3.weight"), "there is no `transformer.layers.1.ff.w3.weight`"),
        (with_tensor("surplus", torch.ones(2)), "1 tensors that are not expected, such as `surplus`"),
        (with_tensor("transformer.layers.3.ln1.weight", torch.ones(24)), "there is no layer `transformer.layers.2`"),
        (with_tensor(LAYER + "ln1.weight", torch.full((24,), torch.nan)), "not finite in `transformer.layers.1.ln1"),
        (with_tensor("head.bias", torch.full((13,), torch.inf)), "not finite in `head.bias`"),
        (with_tensor("head.bias", torch.ones(13, dtype=torch.int64)), r"`head.bias` is of torch.int64"),
        (with_tensor("head.weight", torch.ones(13, 24)), "a head that is not the embedding's"),
        (with_tensor("pos_emb.weight", torch.ones(15, 24)), "15 positions, which are no square grid"),
        (with_tensor(LAYER + "ff.w1.weight", torch.ones(39, 24)), r"is \(39, 24\), expected \(40, 24\)"),
        (with_tensor("cls_emb.weight", torch.ones(24)), r"`cls_emb.weight` is \(24,\), expected 2 axes"),
        (with_tensor("in_proj.weight", torch.ones(24, 24, 2, 2)), "folds its tokens two by two"),
    ],
)
def test_a_halton_file_with_a_fault_is_refused_in_a_sentence(tmp_path, change, sentence):
    state = halton_state()
    change(state)
    with pytest.raises(ModelError, match=sentence):
        read_generator(write_safetensors(state, tmp_path / "faulty.safetensors"), **HALTON)


@pytest.mark.parametrize(
    "heads, sentence",
    [(None, r"number of heads \(--heads\)"), (5, "cannot have 5 heads: its attention is 24 features")],
)
def test_heads_that_cannot_be_are_refused(halton, heads, sentence):
    with pytest.raises(ModelError, match=sentence):
        read_generator(halton, heads=heads)


@pytest.mark.parametrize(
    "where, value, sentence",
    [
        ("MlmLayer_0.mlm_bias", None, "there is no `MlmLayer_0.mlm_bias.bias`"),
        ("TransformerLayer_0", None, "there is no `TransformerLayer_0.Attention_0.self_attention.query.kernel`"),
        ("TransformerLayer_1.Mlp_0.layer_output_ln.scale", None, "there is no `TransformerLayer_1.Mlp_0.layer_output_"),
        ("MlmLayer_0.extra", torch.ones(2), "1 tensors that are not expected, such as `MlmLayer_0.extra`"),
        ("MlmLayer_0.mlm_ln.scale", torch.full((24,), torch.nan), "not finite in `MlmLayer_0.mlm_ln.scale`"),
        ("MlmLayer_0.mlm_ln.scale", torch.ones(23), r"is \(23,\), expected \(24,\)"),
        ("Embed_0.position_embeddings.embedding", torch.ones(16, 24), "15 positions, which are no square grid"),
        ("TransformerLayer_1.Attention_0.self_attention.value.kernel", torch.ones(24, 24), "expected 3 axes"),
        ("TransformerLayer_0.Attention_0.self_attention.query.kernel", torch.ones(24, 3, 9), "3 heads of 9 features"),
    ],
)
def test_a_google_file_with_a_fault_is_refused_in_a_sentence(tmp_path, where, value, sentence):
    params = google_params()
    *parents, last = where.split(".")
    place = params
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value.numpy()
    with pytest.raises(ModelError, match=sentence):
        read_generator(write_flax(params, tmp_path / "faulty"), **GOOGLE)


@pytest.mark.parametrize("kind", ["google", "halton", "pickled"])
@pytest.mark.parametrize("share", [0.2, 0.95])
def test_a_file_that_is_cut_off_is_refused_in_a_sentence(kind, share, request):
    path = request.getfixturevalue(kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match="cut off"):
        read_generator(path, **{"google": GOOGLE, "halton": HALTON, "pickled": PICKLED}[kind])


@pytest.mark.parametrize(
    "names, resembles",
    [
        (["encoder.conv_in.weight", "quantize.embedding.weight"], "a tokenizer: give it as --tokenizer"),
        (["encoder.Conv_0.kernel", "quantizer.codebook"], "a tokenizer"),
        (["tok_emb.weight", "first_layer.0.weight", "bias"], "the older Maskgit-pytorch 1.0"),
        (["encoder_proj.weight", "mlm_layer.conv1.weight"], "aMUSEd's text transformer"),
        (["trunk.embed.weight", "bias"], "a network of maskimg's own"),
        (["wte.weight", "a.bias"], r"nothing known \(its first tensor is `a.bias`\)"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_what_it_resembles(tmp_path, names, resembles):
    save_file({name: torch.ones(2) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=f"not a generator that can be converted.*it looks like {resembles}"):
        read_generator(tmp_path / "other.safetensors")
