"""Write docs/api.md from the docstrings of the public names: python docs/write_api.py"""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import maskimg
import vqgan

PAGE = Path(__file__).with_name("api.md")


def page() -> str:
    lines = ["# Python, name by name", "", "Written by `python docs/write_api.py` from the docstrings.", ""]
    for package in (maskimg, vqgan):
        lines += [f"## {package.__name__}", ""]
        for name in sorted(name for name in package.__all__ if not name.startswith("__")):
            lines += described(f"{package.__name__}.{name}", getattr(package, name))
    return "\n".join(lines).rstrip() + "\n"


def described(name: str, thing: Any) -> list[str]:
    """The heading, signature and docstring of a name, and those of a class's own public methods."""
    lines = [f"### {name}", "", "```python", signature(name.rpartition(".")[2], thing), "```", "", *text(thing), ""]
    if not inspect.isclass(thing):
        return lines
    for method, member in vars(thing).items():
        function = inspect.unwrap(getattr(member, "__func__", member))
        if method.startswith("_") and method != "__call__" or not inspect.isfunction(function) or not function.__doc__:
            continue
        lines += [f"#### {name}.{method}", "", "```python", signature(method, function), "```", "", *text(function), ""]
    return lines


def signature(name: str, thing: Any) -> str:
    """As one would write it, an argument a line where it is long."""
    try:
        found = inspect.signature(thing)
    except ValueError:  # a class of the standard library's making
        return name
    shown = [_parameter(each) for each in found.parameters.values() if each.name not in ("self", "cls")]
    answer = (
        "" if found.return_annotation in (inspect.Signature.empty, None) else f" -> {_name(found.return_annotation)}"
    )
    line = f"{name}({', '.join(shown)}){answer}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){answer}"


def text(thing: Any) -> list[str]:
    """The docstring as markdown: its Args, Attributes and Raises as lists. Dataclasses without one have none."""
    words = inspect.getdoc(thing) if thing.__doc__ else None
    if not words or (dataclasses.is_dataclass(thing) and words.startswith(f"{getattr(thing, '__name__', '')}(")):
        return []
    lines = []
    for line in words.splitlines():
        if head := re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line.strip()):
            lines += [f"**{head[1]}**", ""]
        elif item := re.match(r" {4}(\S[^:]*): (.*)", line):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(("  " if line.startswith("     ") else "") + line.strip())
    return lines


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    words = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        words += f": {_name(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        shown = "..." if "<factory>" in repr(parameter.default) else repr(parameter.default)
        words += f" = {shown}"
    return words


def _name(annotation: Any) -> str:
    """A type as it is written in the code: without the modules it comes from."""
    plain = isinstance(annotation, type) and not getattr(annotation, "__args__", None)
    words = annotation.__name__ if plain else str(annotation)
    return re.sub(r"\b[a-zA-Z_][\w.]*\.(?=[A-Z])", "", words).replace("NoneType", "None")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
