"""The `maskimg` command. Torch and gradio are imported by the commands that need them, so `--help` costs nothing."""

import contextlib
import functools
import importlib
import importlib.metadata
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from maskimg import __version__
from maskimg.cli.endings import BAD_INPUT, CANNOT_GO_ON, DISK_FULL, Refused, fail, is_full_disk
from maskimg.cli.terminal import silence_stdout, usable_streams
from maskimg.training.loop.signals import Interrupted, Interruptions
from maskimg.values import PromptWarning

# By group: command -> the module of `maskimg.cli` that holds it (none if it comes as an entry point), and its purpose.
GROUPS = {
    "Draw": {
        "demo": ("", "Open the browser demo."),
        "sample": ("drawing", "Draw pictures into a folder."),
    },
    "Edit": {
        "inpaint": ("drawing", "Redraw the masked part of a picture."),
        "outpaint": ("drawing", "Extend a picture beyond its edges."),
        "vary": ("drawing", "Redraw a share of a picture's tokens, for variations of it."),
        "translate": ("drawing", "Turn a picture into another one, as the model was trained to."),
        "reconstruct": ("drawing", "Encode a picture with the tokenizer and decode it again."),
    },
    "Train": {
        "train": ("training", "Train a model on a folder or archive of pictures."),
        "train-tokenizer": ("training", "Train only the first stage, the tokenizer."),
        "encode": ("training", "Encode pictures with a tokenizer, the second stage."),
        "train-generator": ("training", "Train generator and critic on encoded pictures, the third stage."),
        "plot": ("measuring", "Plot the training curves of one or several models."),
    },
    "Measure": {
        "eval": ("measuring", "Compare a model's samples with real pictures."),
        "eval-tokenizer": ("measuring", "Measure how well a tokenizer reconstructs pictures."),
        "tune": ("measuring", "Find a model's best sampler for each number of forward passes."),
        "check-data": ("measuring", "Check what a source of pictures holds and which files are unreadable."),
        "doubts": ("drawing", "Show where a model's critic doubts a picture, as a heat map."),
    },
    "Other": {
        "info": ("models", "Show what a model can do, or how a picture was made."),
        "convert": ("models", "Convert tokenizers and generators of other projects."),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

UNHEARD = 128 + 13  # as a program that SIGPIPE ends
TOGETHER = ("train", "train-tokenizer", "encode", "train-generator", "sample")  # what torchrun may start several times
TRAININGS = ("train", "train-tokenizer", "train-generator")  # stopped as asked, these leave with 0
CONTINUED = ("sample", "tune")  # a rerun resumes these, too


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 if it finished or a training was stopped on request, 128 plus the
    signal's number if another command was stopped.

    Raises:
        SystemExit: with 2 for bad input, 3 if a training cannot continue, 4 if the disk is full.
    """
    if arguments is not None:
        return _main(arguments)
    code = _main(sys.argv[1:])
    if sys.argv[1:2] == ["demo"]:
        os._exit(code)  # what is still being drawn, in a thread, would abort the process while Python ends
    return code


def _main(arguments: list[str]) -> int:
    stopped = functools.partial(_say_stopped, arguments[0] if arguments else "")
    with usable_streams(), _safe_children(), Interruptions(stopped) as interruptions:
        try:
            try:
                return _run(arguments, interruptions)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            return stopped(interrupt)
        except BrokenPipeError:  # nobody reads on, as with `| head`
            silence_stdout()
            return UNHEARD
        except OSError as error:
            silence_stdout()
            words = f"the output could not be printed ({error.strerror or error})"
            fail(words, DISK_FULL if is_full_disk(error) else BAD_INPUT)


def _run(arguments: list[str], interruptions: Interruptions) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"maskimg {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        fail(f"there is no command `{name}`; `maskimg --help` lists them")
    command, purpose = command_named(name), COMMANDS[name][1]
    from maskimg.cli.options import Parser

    # Threads that spin while they wait make a busy machine several times slower. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = Parser(prog=f"maskimg {name}", description=purpose)
    try:
        with _together(name), _remarks_in_words():
            return command(parser, rest) or 0
    except Refused as refused:
        fail(str(refused))
    except BrokenPipeError:
        raise
    except Exception as error:
        if interruptions.heard:  # what it was raised in has made it an error of its own
            raise interruptions.heard from error
        if _is_stop(error):  # asked for, and everything is saved
            if os.environ.get("RANK", "0") == "0":
                print(f"maskimg: {error}")
            return 0
        if not _is_kind(error):
            raise
        _explain(error)


def command_named(name: str) -> Callable[[Any, list[str]], int | None]:
    """The function behind a command: one of this package's, or what another registers under `maskimg.commands`."""
    module, _ = COMMANDS[name]
    if module:
        return getattr(importlib.import_module(f"maskimg.cli.{module}"), name.replace("-", "_"))
    found = importlib.metadata.entry_points(group="maskimg.commands", name=name)
    if not found:
        fail(f"`maskimg {name}` is not installed: reinstall maskimg with `pip install --force-reinstall maskimg`")
    return next(iter(found)).load()


def _say_stopped(name: str, interrupt: KeyboardInterrupt) -> int:
    """Say that the command `name` was interrupted -> its exit code."""
    number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
    by = interrupt.by if isinstance(interrupt, Interrupted) else "a second Ctrl-C"
    again = "; run the same command again to continue" if name in TRAININGS + CONTINUED else ""
    done = name in TRAININGS and isinstance(interrupt, Interrupted)
    # A page that is served has no other end: its last line is its address.
    if os.environ.get("RANK", "0") == "0" and name != "demo":
        print(f"maskimg: stopped by {by}{again}", file=sys.stdout if done else sys.stderr, flush=True)
    return 0 if done else 128 + number


@contextlib.contextmanager
def _safe_children() -> Iterator[None]:
    """Inside, processes that are started do not take a file called `random.py`, say, for Python's own module."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _together(name: str) -> contextlib.AbstractContextManager[None]:
    """Of a command that torchrun started several times, one group of processes that share its work."""
    if name not in TOGETHER or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return contextlib.nullcontext()
    from maskimg.distributed import joined

    return joined()


@contextlib.contextmanager
def _remarks_in_words() -> Iterator[None]:
    """Inside, what is warned of a prompt, a picture or a mask is a line for people, without the place in the code."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        # A PictureWarning by its name, because its module loads Pillow.
        if issubclass(category, PromptWarning) or category.__name__ == "PictureWarning":
            print(f"note: {message}", file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", PromptWarning)
        usual, warnings.showwarning = warnings.showwarning, show
        yield


def overview() -> str:
    """What `maskimg --help` prints."""
    lines = ["maskimg generates and edits images with a masked generative transformer.", ""]
    lines += ["usage: maskimg COMMAND [options]", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<16} {purpose}" for name, (_, purpose) in commands.items()), ""]
    return "\n".join(
        [
            *lines,
            "To begin: `maskimg demo`. On your own pictures: `maskimg train FOLDER --out MODEL`.",
            "`maskimg COMMAND --help` shows a command's everyday options, `--help-all` all of them.",
        ]
    )


def _is_stop(error: Exception) -> bool:
    from maskimg.training.loop.errors import Stopped

    return isinstance(error, Stopped)


def _is_kind(error: Exception) -> bool:
    """Whether an error is explained in one sentence rather than by a traceback."""
    from maskimg.training.loop.guards import memory_ran_out
    from maskimg.training.loop.run import TrainingError

    plain = isinstance(error, ValueError | OSError | TrainingError)
    return plain or memory_ran_out(error) or is_full_disk(error)


def _explain(error: Exception) -> NoReturn:
    from maskimg.training.loop.guards import SMALL_MEMORY, memory_ran_out
    from maskimg.training.loop.run import TrainingError

    trains = isinstance(error, TrainingError)
    if not trains and memory_ran_out(error):
        fail(SMALL_MEMORY, CANNOT_GO_ON)
    if not is_full_disk(error):
        fail(str(error), CANNOT_GO_ON if trains else BAD_INPUT)
    fail(str(error) if trains else f"the disk is full ({error}): make room, then run the same command again", DISK_FULL)
