"""Every command and every call, given wrong values of each of its parameters: one sentence, and no traceback.

The parameters are read from the commands' own parsers and from what the page says of its calls. About a hundred cases
are tried; with SLOW=1 in the environment all of them, and their number is printed.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from helpers import stirred, tiny_pictures
from PIL import Image
from tiny import TOKENIZER, listening_pipeline

import maskimg.data.pictures
import maskimg.training.folder
import maskimg.training.stages
from maskimg.cli.main import COMMANDS, command_named, main
from maskimg.cli.options import Parser
from maskimg.data.codes import encode_pictures
from maskimg.evaluation import quality
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import app
from vqgan import Tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
ALL = bool(os.environ.get("SLOW"))

LONG, HUGE = "x" * 10_000, str(2**200)
WORDS = ["abc", "true", "None", "[]", "{}", "1,2", "--", "nan", "inf", "-inf", "1e999", "-0", "1" * 5000]
SURE = {  # of a type, what is wrong whatever the option means
    "int": ["", " ", "2.5", LONG, "a\0b", *(word for word in WORDS if word not in ("-0", "1" * 5000))],
    "float": ["", " ", LONG, "a\0b", "abc", "true", "None", "[]", "{}", "1,2"],
    "str": ["", " ", "a\0b", "\ud800"],
}
PERHAPS = {  # and what may be, or may not: then it is done, and not counted
    "int": ["-1", "0", "-0", "0x10", str(2**63), HUGE, "1" * 5000],
    "float": ["-1", "0", "-0", "1e-320", HUGE, "nan", "inf", "-inf", "1e999", "0x10"],
    "str": [
        LONG,
        "\n",
        "nowhere",
        "no/where/at/all",
        "FILE",
        "FOLDER",
        "-1",
        "..",
        "/",
        "nan",
        "None",
        "[]",
        "{}",
        "é",
    ],
}


class BeganError(Exception):
    """A case came as far as the work: nothing was wrong with it."""


def begin(*_: Any, **__: Any) -> Any:
    raise BeganError


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, a tokenizer, codes, pictures, and files that are none of these."""
    place = tmp_path_factory.mktemp("place")
    listening_pipeline().save_pretrained(place / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = stirred(Tokenizer(TOKENIZER), size=0.05).eval()
    tokenizer.save_pretrained(place / "tokenizer")
    encode_pictures(tokenizer, tiny_pictures(12), place / "codes")
    for i in range(4):
        (place / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (60 * i, 30, 200)).save(place / "pictures" / f"{i}.png")
    painted = np.zeros((16, 16), np.uint8)
    painted[4:9, 4:9] = 255
    Image.fromarray(painted).save(place / "mask.png")
    (place / "file").write_text("neither picture nor model\n")
    (place / "folder").mkdir()
    return place


@pytest.fixture
def terminal(place, tmp_path, monkeypatch) -> Path:
    """A folder to be in, where the long work of every command ends as soon as it begins."""
    monkeypatch.chdir(tmp_path)
    kept = Pipeline.from_pretrained(place / "model", device="cpu", dtype="fp32")
    load = Pipeline.from_pretrained

    def load_once(name: Any, *, device: str = "auto", dtype: str = "auto", compile: bool = False) -> Pipeline:
        if (str(name), device, dtype, compile) == (str(place / "model"), "cpu", "fp32", False):
            return kept
        return load(name, device=device, dtype=dtype, compile=compile)

    monkeypatch.setattr(Pipeline, "from_pretrained", load_once)
    monkeypatch.setattr(maskimg.training.folder, "train_folder", begin)
    monkeypatch.setattr(maskimg.training.stages, "generator_stage", begin)
    monkeypatch.setattr(maskimg.data.pictures, "read_pictures", begin)
    monkeypatch.setattr(quality, "draw_samples", begin)
    monkeypatch.setattr(app, "build", begin)
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    return tmp_path


def usual(name: str, place: Path) -> list[str]:
    """Arguments with which a command would work."""
    picture, model = str(place / "pictures" / "0.png"), str(place / "model")
    machine, loaded = ["--device", "cpu", "--dtype", "fp32"], ["--model", model]
    quick = ["--steps", "1"]
    return {
        "demo": [*loaded, *machine],
        "train": [str(place / "pictures"), "--out", "m", *machine, "--size", "16"],
        "train-tokenizer": [str(place / "pictures"), "--out", "m", *machine, "--size", "16"],
        "encode": [str(place / "pictures"), str(place / "tokenizer"), "--out", "c", "--size", "16", "--device", "cpu"],
        "train-generator": [str(place / "codes"), str(place / "tokenizer"), "--out", "m", *machine],
        "plot": [model, "--out", "p.png"],
        "sample": [*loaded, "--out", "s", "--count", "1", *machine, *quick],
        "inpaint": [picture, str(place / "mask.png"), *loaded, "--out", "i.png", *machine, *quick],
        "outpaint": [picture, *loaded, "--out", "o.png", "--margins", "1,0,0,0", *machine, *quick],
        "vary": [picture, *loaded, "--out", "v.png", *machine, *quick],
        "translate": [picture, *loaded, "--out", "t.png", *machine, *quick],
        "reconstruct": [picture, *loaded, "--out", "r.png", *machine],
        "eval-tokenizer": [str(place / "tokenizer"), str(place / "pictures"), "--device", "cpu"],
        "eval": [model, str(place / "pictures"), *machine],
        "tune": [model, str(place / "pictures"), "--out", "t", *machine],
        "convert": [str(place / "tokenizer"), "--out", "c"],
        "check-data": [str(place / "pictures")],
        "doubts": [picture, *loaded, "--out", "d.png", *machine],
        "info": [model],
    }[name]


class ParserError(Exception):
    """Holds the parser of a command that was about to read its arguments."""

    def __init__(self, parser: Parser):
        self.parser = parser


def parser_of(name: str) -> Parser:
    def give(self: Parser, *_: Any, **__: Any) -> Any:
        raise ParserError(self)

    command = command_named(name)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ParserError) as caught:
        patch.setattr(Parser, "parse_args", give)
        command(Parser(prog=f"maskimg {name}"), [])
    return caught.value.parser


def kind_of(action: Any) -> str:
    """int, float or str: what an option takes; flag where it takes nothing."""
    if action.nargs == 0:
        return "flag"
    told = str(getattr(action, "_typehint", None) or action.type)
    return next((kind for kind in ("int", "float") if re.search(rf"\b{kind}\b", told) and "tuple" not in told), "str")


def with_value(arguments: list[str], action: Any, value: str, position: int) -> list[str]:
    """The usual arguments with another value of one of them."""
    if not action.option_strings:
        return [*arguments[:position], value, *arguments[position + 1 :]]
    option, kept = action.option_strings[-1], list(arguments)
    if option in kept:
        at = kept.index(option)
        del kept[at : at + 2]
    return [*kept, f"{option}={value}"]


def cases_of(name: str, place: Path) -> Iterator[tuple[list[str], bool]]:
    """Arguments, and whether they are wrong for sure."""
    arguments, position = usual(name, place), 0
    stand_ins = {"FILE": str(place / "file"), "FOLDER": str(place / "folder")}
    for action in parser_of(name)._actions:
        if action.dest == "help" or action.dest.startswith("print_"):
            continue
        kind = kind_of(action)
        if action.option_strings:
            option = action.option_strings[-1]
            if kind == "flag":
                yield [*arguments, f"{option}=3"], True
                yield [*arguments, option, option], True
                continue
            yield [*(each for each in arguments if each != option), option], True  # without a value
            if "Append" not in type(action).__name__ and "Config" not in type(action).__name__:
                yield [*arguments, option, "1", option, "1"], True
        may_be_empty = action.dest in ("prompt", "negative") or kind_is_loose(action)
        for value in SURE[kind]:
            yield with_value(arguments, action, value, position), not (may_be_empty and not value.strip())
        for value in PERHAPS[kind]:
            yield with_value(arguments, action, stand_ins.get(value, value), position), False
        position += not action.option_strings


def kind_is_loose(action: Any) -> bool:
    """Of a plan's settings, an empty word may be the usual one, and null may be one of the values."""
    return "." in action.dest or action.dest in ("source", "source_tokenizer", "captions", "config")


def answered(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    """The sentence of a refusal; nothing where the arguments were accepted."""
    try:
        main(arguments)
    except SystemExit as end:
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskimg: ")]
        assert end.code == 2 and len(said) == 1, (arguments, end.code, said)
        assert len(said[0]) < 1100 and "Traceback" not in said[0] and "<class" not in said[0], said
        return said[0]
    except BeganError:
        pass
    capsys.readouterr()
    return ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_answers_a_wrong_value_with_one_line(name, place, terminal, capsys):
    accepted = answered(capsys, [name, *usual(name, place)])  # nothing, but for `plot`
    cases = list(cases_of(name, place))
    cases = cases[2 :: max(1, len(cases) // (60 if ALL else 4))]
    counted = 0
    for arguments, sure in cases:
        said = answered(capsys, [name, *arguments])
        if sure:
            assert said and said != accepted, f"accepted: {arguments}"
        counted += bool(said and said != accepted)
    assert counted
    if ALL:
        with capsys.disabled():
            print(f"\n{name}: {counted} of {len(cases)} cases refused, the others accepted")


# ----------------------------------------------------------------------------- the page's calls

VALUES = [
    None, "", "abc", "3", "x" * 10_000, "a\0b", "\ud800", "\x1b[2J", True, -1, 0.5, -0.0, 2**63, 2**200, float("nan"),
    float("inf"), float("-inf"), [], [1], {}, {"path": 3}, {"path": "/etc/hostname"}, [[["x"]]], "None", "<b>",
]  # fmt: skip


@pytest.fixture(scope="module")
def door(tmp_path_factory) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = app.build(listening_pipeline())
        with httpx.Client(
            base_url=app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0))), timeout=60
        ) as client:
            yield client
        page.close(verbose=False)


def call(door: httpx.Client, name: str, body: str) -> tuple[str, Any]:
    """The kind of the last event and what it says."""
    asked = door.post(f"gradio_api/call/v2{name}", content=body, headers={"Content-Type": "application/json"})
    if asked.status_code != 200:
        assert 400 <= asked.status_code < 500, asked.text
        return "refused", asked.json()["detail"]
    text = door.get(f"gradio_api/call/v2{name}/{asked.json()['event_id']}").text
    kind, _, data = text.rpartition("event: ")[2].partition("\n")
    return kind, json.loads(data.removeprefix("data: "))


def test_every_value_of_a_call_is_used_or_refused_in_a_sentence(door, place, capfd, caplog):
    files = {"files": ("a.png", (place / "pictures" / "0.png").read_bytes())}
    masks = {"files": ("mask.png", (place / "mask.png").read_bytes())}
    uploads = {
        name: {"path": door.post("gradio_api/upload", files=each).json()[0], "meta": {"_type": "gradio.FileData"}}
        for name, each in (("image", files), ("mask", masks))
    }
    calls = door.get("gradio_api/info").json()["named_endpoints"]
    usual = {"images": 1, "steps": 1, "seed": 1, "size": "the model's"} | uploads
    cases = []
    for name, about in calls.items():
        names = [parameter["parameter_name"] for parameter in about["parameters"]]
        base = {each: usual[each] for each in names if each in usual}
        kind, said = call(door, name, json.dumps(base))
        assert kind == "complete" or name == "/read_recipe", (name, said)
        cases += [(name, json.dumps(base | {each: value})) for each in names for value in VALUES]
        cases += [(name, json.dumps(base)[:-1] + f', "{each}": 1e400}}') for each in names]
        cases += [(name, json.dumps(base | {odd: 1})) for odd in ("no_such_value", "", "fn_index", "\ud800")]
    counted, step = 0, max(1, len(cases) // (400 if ALL else 40))
    for name, body in cases[::step]:
        kind, said = call(door, name, body)
        if kind == "complete":
            continue
        sentence = said["error"] if kind == "error" else said
        assert isinstance(sentence, str) and 10 < len(sentence) < 700, (name, body[:300], said)
        assert "went wrong" not in sentence and "Traceback" not in sentence and "site-packages" not in sentence, said
        counted += 1
    log = "".join(capfd.readouterr())
    assert "Traceback" not in log and "Error" not in log, log[-3000:]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert counted > 10
    if ALL:
        with capfd.disabled():
            print(f"\ncalls: {counted} of {len(cases)} cases refused, the others used")
