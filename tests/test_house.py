"""The house: which room may import which, no circles, and how large rooms, modules and functions may be.

`python tests/test_house.py` prints the figures.
"""

import ast
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"vqgan": "vqgan", "maskimg": "maskimg", "maskimg_apps": "apps"}  # name -> folder

# From above to below: each line imports only from lines below it, and from itself.
LEVELS = (
    ("maskimg_apps.sample", "maskimg_apps.demo"),
    ("maskimg.cli", "maskimg.__main__"),
    ("maskimg.training",),
    ("maskimg.training.tracking", "maskimg.training.loop"),
    ("maskimg.evaluation", "maskimg.interop"),
    ("maskimg.pipeline",),
    ("maskimg.drawing",),
    ("maskimg.data",),
    ("maskimg.networks",),
    ("maskimg.maskgit", "maskimg.sampling"),
    ("maskimg.paper",),
    ("maskimg.network", "maskimg.sampler", "maskimg.conditions", "maskimg.masking", "maskimg.noise"),
    ("maskimg.outputs",),
    ("maskimg.hardware", "maskimg.distributed", "maskimg.recipe", "maskimg.values"),
    ("maskimg",),
    ("vqgan", "vqgan.tokenizer", "vqgan.export"),
    ("vqgan.interop",),
    ("vqgan.network", "vqgan.quantizer", "vqgan.loss", "vqgan.discriminator", "vqgan.similarity"),
    ("vqgan.images", "vqgan.colour", "vqgan.original", "vqgan.png"),
    ("vqgan.files", "vqgan.writing", "vqgan.places"),
)
MODULES, LINES, MEDIAN, FUNCTION, PARAMETERS, LOOP = 14, 400, 170, 60, 8, 40

# Public ones whose parameters are what a person may say, written out so that an editor shows them.
PUBLIC = {f"maskimg.pipeline:{name}" for name in ("generate", "inpaint", "outpaint", "vary")}
PUBLIC |= {"maskimg.drawing.model:__init__"}  # what a finished model consists of
PUBLIC |= {"maskimg.interop.nonautoregressive:__init__"}  # as in x-transformers, in its order


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """Full name -> file; of a package its `__init__`."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the house that a module imports, also inside functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports with dots: name the module"
            each = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {whole if whole in known else str(node.module) for whole in each}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {other for other in found if other in known and other != name}


def level(name: str) -> int:
    """The line of LEVELS that a module belongs to: by its own name, or that of the room it lies in."""
    while name:
        for i, names in enumerate(LEVELS):
            if name in names:
                return i
        name = name.rpartition(".")[0]
    raise AssertionError


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(name, path, known) for name, path in known.items()}


def room(name: str) -> str:
    return name.rpartition(".")[0] or name


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, path in modules().items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.name}", node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its `def` on, its docstring not counted."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    found = node.args
    each = [*found.posonlyargs, *found.args, *found.kwonlyargs]
    return len([one for one in each if one.arg not in ("self", "cls")])


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def sizes_of_rooms() -> dict[str, int]:
    found: dict[str, int] = {}
    for name, path in modules().items():
        if path.name != "__init__.py":
            found[room(name)] = found.get(room(name), 0) + 1
    return found


def test_every_import_points_downwards():
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if level(other) < level(name) and name not in PACKAGES  # which give the names of what lies below them, late
    ]
    assert wrong == []


def test_no_module_imports_itself_by_a_detour():
    edges = graph()
    circles = []
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> None:
        if name in above:
            circles.append(" -> ".join([*above[above.index(name) :], name]))
            return
        if name in done:
            return
        for other in sorted(edges[name]):
            walk(other, [*above, name])
        done.add(name)

    for name in edges:
        # A package's `__init__` gives names of what lies below it, late.
        if modules()[name].name != "__init__.py":
            walk(name, [])
    assert {circle for circle in circles if circle.split(" -> ")[0] not in PACKAGES} == set()


@pytest.mark.parametrize("name", [name for name, path in modules().items() if path.name == "__init__.py"])
def test_every_room_says_what_it_is_for(name):
    words = ast.get_docstring(parsed(modules()[name]))
    assert words and len(words.split(". ")) >= 1


def test_no_room_is_too_full():
    assert {name: size for name, size in sizes_of_rooms().items() if size > MODULES} == {}


def test_no_module_is_too_long():
    lengths = {name: lines_of(path) for name, path in modules().items()}
    assert {name for name, length in lengths.items() if length > LINES} == set()
    assert statistics.median(lengths.values()) < MEDIAN


def test_no_function_is_too_long():
    assert {name for name, node in functions() if code_lines(node) > FUNCTION} == set()


def test_the_sampling_loop_fits_on_a_screen():
    (loop,) = (node for name, node in functions() if name == "maskimg.sampling:sample_steps")
    assert code_lines(loop) <= LOOP


def test_no_function_has_too_many_parameters():
    assert {name for name, node in functions() if parameters(node) > PARAMETERS} == PUBLIC


if __name__ == "__main__":
    lengths = {name: lines_of(path) for name, path in modules().items()}
    print(f"{len(lengths)} modules, {sum(lengths.values())} lines, median {statistics.median(lengths.values()):.0f}")
    for name, size in sorted(sizes_of_rooms().items(), key=lambda pair: -pair[1]):
        print(f"{size:3} modules in {name}")
    for name, length in sorted(lengths.items(), key=lambda pair: -pair[1])[:12]:
        print(f"{length:4} lines in {name}")
    long = sorted(((code_lines(node), name) for name, node in functions()), reverse=True)
    for length, name in long[:20]:
        print(f"{length:4} lines of code in {name}")
    many = sorted(((parameters(node), name) for name, node in functions()), reverse=True)
    for count, name in many[:20]:
        print(f"{count:3} parameters of {name}")
