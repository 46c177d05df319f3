"""Imports point one way, apps -> maskimg -> vqgan -> torch, and importing a module does nothing else."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"vqgan": "vqgan", "maskimg": "maskimg", "maskimg_apps": "apps"}  # name -> folder

# These know tensors only: no file, no picture, no tokenizer. It holds for what they import of maskimg, too.
PURE = (
    "maskimg.masking",
    "maskimg.network",
    "maskimg.networks.transformer",
    "maskimg.networks.google",
    "maskimg.networks.halton",
    "maskimg.maskgit",
    "maskimg.sampler",
    "maskimg.sampling",
    "maskimg.noise",
    "maskimg.paper.checks",
    "maskimg.paper.counts",
    "maskimg.paper.dialect",
    "maskimg.paper.draws",
    "maskimg.paper.first",
    "maskimg.paper.guidance",
    "maskimg.paper.objective",
    "maskimg.paper.orders",
    "maskimg.paper.self_conditioning",
    "maskimg.evaluation.metrics",
)
PICTURES_AND_TOKENIZERS = {"PIL", "torchvision", "imageio", "cv2", "gradio", "vqgan", "vector_quantize_pytorch"}
FILES = {"pathlib", "os", "io", "shutil", "tempfile", "glob", "json", "pickle", "yaml"}
FILES |= {"safetensors", "huggingface_hub", "urllib", "requests"}
FILE_CALLS = {"open", "torch.load", "torch.save", "numpy.load", "numpy.save", "np.load", "np.save"}

# Calls that change the world of whoever imports a module.
EFFECTS = {"print", "open", "mkdir", "makedirs", "chdir", "parse_args", "basicConfig", "filterwarnings", "simplefilter"}
EFFECTS |= {"manual_seed", "seed", "set_num_threads", "set_default_device", "set_default_dtype", "cuda"}
EFFECTS |= {"set_float32_matmul_precision", "use_deterministic_algorithms", "set_start_method", "setdefault", "putenv"}


# ----------------------------------------------------------------------------- who may import whom


def test_every_package_has_modules_that_the_rules_are_about():
    # Without these, a rule below would hold for nothing.
    assert set(modules(ROOT)) >= {*PACKAGES, *PURE, "maskimg.cli.drawing", "vqgan.quantizer"}


def test_vqgan_knows_neither_maskimg_nor_the_apps():
    assert found(ROOT, of="vqgan", names={"maskimg", "maskimg_apps", "apps"}) == []


def test_maskimg_knows_no_app():
    assert found(ROOT, of="maskimg", names={"maskimg_apps", "apps"}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nobody_imports_the_apps_by_the_name_of_their_folder(package):
    assert found(ROOT, of=package, names={"apps"}) == []


@pytest.mark.parametrize("module", PURE)
def test_the_mathematics_knows_no_picture_no_tokenizer_and_no_file(module):
    forbidden = PICTURES_AND_TOKENIZERS | FILES | {"maskimg_apps", "apps"}
    for other in reachable(modules(ROOT), module):
        assert [use for use in uses(other) if use.top_level_name in forbidden] == []
        assert [call for call in calls(other.tree) if call in FILE_CALLS] == [], f"{other.name} opens files"


def test_only_the_quantizer_imports_vector_quantize_pytorch():
    users = {use.module for package in PACKAGES for use in found(ROOT, of=package, names={"vector_quantize_pytorch"})}
    assert users == {"vqgan.quantizer"}


def test_only_the_apps_import_gradio():
    assert found(ROOT, of="vqgan", names={"gradio"}) == []
    assert found(ROOT, of="maskimg", names={"gradio"}) == []


def test_pickles_are_opened_only_by_a_program_that_knows_nothing_of_this_project():
    """`vqgan.interop.foreign` runs it in a process of its own."""
    readers = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}
    found_in = {name for name, module in modules(ROOT).items() if readers & set(calls(module.tree))}
    assert found_in == {"vqgan.interop.unpickle"}
    importers = {use.module for package in PACKAGES for use in found(ROOT, of=package, names={"pickle"})}
    assert importers == {"vqgan.interop.unpickle"}
    assert [use for use in uses(modules(ROOT)["vqgan.interop.unpickle"]) if use.top_level_name in PACKAGES] == []


# ----------------------------------------------------------------------------- importing does nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_does_anything_when_it_is_imported(package):
    assert [(module.name, effect) for module in members(ROOT, package) for effect in effects(module.tree)] == []


def test_importing_every_module_prints_nothing_writes_nothing_and_leaves_torch_as_it_was(tmp_path):
    names = sorted(name for name in modules(ROOT) if not name.endswith("__main__"))
    script = f"""
import importlib, os, random
import torch

def world():
    return [
        torch.random.get_rng_state().sum().item(), hash(random.getstate()), torch.get_num_threads(),
        str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), os.getcwd(),
    ]

# What third parties do when they are imported is not ours.
for name in ("gradio", "torchvision", "vector_quantize_pytorch"):
    importlib.import_module(name)
before = world()
for name in {names!r}:
    importlib.import_module(name)
    assert world() == before, f"importing {{name}} changed the world"
"""
    assert run_python(script, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_starts_without_torch_and_without_gradio(tmp_path):
    heavy = ("torch", "torchvision", "gradio", "vector_quantize_pytorch")
    script = f"import json, sys, maskimg.cli.main; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    assert json.loads(run_python(script, tmp_path)) == []


# ----------------------------------------------------------------------------- the rules see what they should


@pytest.mark.parametrize(
    "line, name",
    [
        ("import maskimg", "maskimg"),
        ("import maskimg.data.codes as c", "maskimg.data.codes"),
        ("from maskimg.data import codes", "maskimg.data.codes"),
        ("from .images import load_image", "vqgan.images"),
        ("from . import images", "vqgan.images"),
        ("def late():\n    from maskimg.data.codes import encode", "maskimg.data.codes"),
    ],
)
def test_a_rule_sees_an_import_however_it_is_written(line, name):
    assert name in {use.name for use in uses(Module("vqgan.network", False, ast.parse(line)))}


def test_the_dots_of_a_package_mean_the_package_itself():
    package = Module("maskimg.training", True, ast.parse("from .run import order\nfrom ..codes import encode"))
    assert {use.name for use in uses(package)} >= {"maskimg.training.run.order", "maskimg.codes.encode"}


def test_a_rule_names_the_module_and_the_line_that_break_it(tmp_path):
    for folder in PACKAGES.values():
        (tmp_path / folder).mkdir()
    (tmp_path / "vqgan" / "network.py").write_text("import torch\n\nfrom maskimg import masking\n")
    (broken, _) = found(tmp_path, of="vqgan", names={"maskimg"})
    assert (broken.module, broken.line, broken.in_function) == ("vqgan.network", 3, False)


@pytest.mark.parametrize(
    "line",
    [
        "print('hello')",
        "if True:\n    torch.set_num_threads(2)",
        "seed = torch.manual_seed(0)",
        "class A:\n    root = Path('runs').mkdir()",
        "import os\nos.environ['A'] = 'b'",
        "torch.backends.cudnn.benchmark = True",
        "warnings.warn('old')",
        "def f(x=print('hello')): pass",
    ],
)
def test_a_rule_sees_what_runs_at_import_time(line):
    assert effects(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "def f():\n    print('hello')",
        "if __name__ == '__main__':\n    main()",
        "NAMES = tuple(sorted({'a', 'b'}))",
        "'''A docstring.'''",
        "@torch.no_grad()\ndef f(): ...",
        "SHAPE: tuple[int, int] = (1, 2)",
    ],
)
def test_a_rule_lets_definitions_pass(line):
    assert effects(ast.parse(line)) == []


# ----------------------------------------------------------------------------- helpers


class Module(NamedTuple):
    """A module's full name, whether it is the `__init__` of a package, and what it says."""

    name: str
    is_package: bool
    tree: ast.Module


class Use(NamedTuple):
    """One import: the module it stands in, its line, the full name it asks for, and where it stands."""

    module: str
    line: int
    name: str
    in_function: bool

    @property
    def top_level_name(self) -> str:
        return self.name.partition(".")[0]


def modules(root: Path) -> dict[str, Module]:
    """Full name -> module, for every package."""
    result = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            name = ".".join([package, *path.relative_to(root / folder).with_suffix("").parts])
            name = name.removesuffix(".__init__")
            result[name] = Module(name, path.name == "__init__.py", ast.parse(path.read_text(encoding="utf-8")))
    return result


def members(root: Path, package: str) -> list[Module]:
    return [module for name, module in modules(root).items() if name.partition(".")[0] == package]


def found(root: Path, *, of: str, names: set[str]) -> list[Use]:
    """The imports in package `of` whose top-level name is one of `names`."""
    return [use for module in members(root, of) for use in uses(module) if use.top_level_name in names]


def uses(module: Module) -> list[Use]:
    """Every import of a module, relative ones resolved. `from a import b` asks for `a` and for `a.b`."""
    functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(node) for function in functions for node in ast.walk(function)}

    result = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*parent(module, node.level), *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        result += [Use(module.name, node.lineno, name, id(node) in late) for name in names]
    return result


def parent(module: Module, dots: int) -> list[str]:
    """The package that leading dots mean inside a module, in parts; none for no dots."""
    parts = module.name.split(".")
    return parts[: len(parts) - dots + module.is_package] if dots else []


def reachable(all_modules: dict[str, Module], start: str) -> list[Module]:
    """A module and all of maskimg that it imports, directly or not. `maskimg/__init__.py` is lazy, hence no path."""
    todo, seen = [start], set()
    while todo:
        name = todo.pop()
        seen.add(name)
        asked = {use.name for use in uses(all_modules[name])}
        todo += [other for other in asked & all_modules.keys() - seen if other.startswith("maskimg.")]
    return [all_modules[name] for name in sorted(seen)]


def calls(tree: ast.AST) -> Iterator[str]:
    """The dotted names of the functions that are called anywhere below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def effects(tree: ast.Module) -> list[str]:
    """What a module does at import time beyond defining things: calls for their own sake, settings, named calls."""
    result = []
    for node in at_import(tree):
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if is_assignment(node) else []
        sets_elsewhere = any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        is_named = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in EFFECTS
        if is_call or sets_elsewhere or is_named:
            result.append(f"line {node.lineno}: {ast.unparse(node)}")
    return result


def is_assignment(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign | ast.AugAssign)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: all but the bodies of functions and of the `__main__` guard."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (*child.decorator_list, child.args):
                yield from at_import(part)
                yield part
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            continue
        elif not isinstance(child, ast.Lambda):
            yield child
            yield from at_import(child)


def run_python(script: str, folder: Path) -> str:
    """Run a script in a process of its own, in an empty folder -> all that it printed."""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_every_public_name_can_be_imported_and_none_is_forgotten():
    import maskimg

    assert set(maskimg.__all__) == {"__version__", *maskimg._HOMES}
    for name in maskimg.__all__:
        assert getattr(maskimg, name) is not None
