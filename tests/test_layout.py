"""The rules about the tree itself: which module imports which, how long files are, what never lands, what is tested."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "unoise_monai"
ORDER = (
    "types, checks, atomic -> networks -> unoise -> losses -> data -> phantoms -> inference -> attribution -> metrics"
)
ORDER += " -> render -> handlers -> bundle -> runs -> fit -> report -> cli"
RANK = {name: rank for rank, names in enumerate(ORDER.split(" -> ")) for name in names.split(", ")}
MAX_MODULE_LINES = 510
MAX_README_LINES = 140


def python_files(folder: str) -> list[str]:
    """Paths relative to the root, POSIX-style, sorted."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py"))


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or an attribute, empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def imported_names(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of all that a file imports, inside functions and by ``import_module`` too."""
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, str(arg.value)) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def import_errors(source: str, path: str) -> list[str]:
    """What breaks the one-direction rule in a file of the package; its own ``__init__`` may import any of it."""
    own = PurePosixPath(path).parts[1].removesuffix(".py")
    if own != "__init__" and own not in RANK:
        return [f"{path}: '{own}' has no place in the import order, add it to ORDER and to CONTRIBUTING.md"]
    errors = []
    for line, name in imported_names(source, path):
        parts = name.split(".")
        if parts[0] == "bundles":
            errors.append(f"{path}:{line}: the package must not import bundles, got {name}")
        if parts[0] != PACKAGE:
            continue
        other = parts[1] if len(parts) > 1 else ""
        if other not in RANK:
            errors.append(f"{path}:{line}: an import must name a module of the import order, got {name}")
        elif own != "__init__" and RANK[other] > RANK[own]:
            errors.append(f"{path}:{line}: {own} must import only from its left, got {name}")
    return errors


def is_catch_all(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes every exception and does nothing with it."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    catches_all = any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in kinds)
    return catches_all and all(
        isinstance(step, ast.Pass | ast.Continue)
        or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
        for step in handler.body
    )


def forbidden_code(source: str) -> list[str]:
    """An identity affine, weights loaded as pickled code, exceptions swallowed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and is_catch_all(node):
            found.append(f"line {node.lineno}: swallows every exception")
        if not isinstance(node, ast.Call):
            continue
        name, words = dotted(node.func), {word.arg: word.value for word in node.keywords}
        sizes = [*node.args[:1], *(words[key] for key in ("N", "n") if key in words)]
        is_four = any(isinstance(size, ast.Constant) and size.value == 4 for size in sizes)
        if name.rpartition(".")[2] in ("eye", "identity") and is_four:
            found.append(f"line {node.lineno}: {name}(4), an affine must come from the input file")
        if name == "torch.load" and getattr(words.get("weights_only"), "value", None) is not True:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if name.rpartition(".")[2] == "suppress" and any(dotted(kind) == "Exception" for kind in node.args):
            found.append(f"line {node.lineno}: swallows every exception")
    return found


def forbidden_config(text: str) -> list[str]:
    """``torch.load`` calls of a bundle's configuration that would run pickled code."""
    calls = re.finditer(r"torch\.load\((?:[^()]|\([^()]*\))*\)?", text)
    return [call.group() for call in calls if not re.search(r"weights_only\s*=\s*True", call.group())]


def line_errors(text: str, limit: int) -> list[str]:
    lines = len(text.splitlines())
    return [f"must have at most {limit} lines, got {lines}"] if lines > limit else []


@pytest.mark.parametrize("path", python_files(PACKAGE))
def test_module_keeps_the_rules(path: str) -> None:
    source = read(path)
    errors = import_errors(source, path) + line_errors(source, MAX_MODULE_LINES) + forbidden_code(source)
    assert errors == []


def test_scripts_keep_the_rules() -> None:
    scripts = python_files("bundles") + python_files("benchmarks") + python_files("configs")
    assert {path: found for path in scripts if (found := forbidden_code(read(path)))} == {}


def test_configurations_load_weights_only() -> None:
    configs = [path for ending in ("yaml", "yml", "json") for path in (ROOT / "bundles").rglob(f"configs/*.{ending}")]
    assert {path.name: found for path in configs if (found := forbidden_config(path.read_text("utf-8")))} == {}


def test_readme_is_short() -> None:
    assert line_errors(read("README.md"), MAX_README_LINES) == []


def test_no_configuration_names_a_module() -> None:
    """Of a function and a module of one name, `pydoc.locate`, and so MONAI, finds the module in Python 3.13."""
    configs = [path for folder in ("bundles", "configs", "benchmarks") for path in (ROOT / folder).rglob("*.yaml")]
    targets = {
        name for path in configs for name in re.findall(rf"_target_: ({PACKAGE}[\w.]+)", path.read_text("utf-8"))
    }
    assert f"{PACKAGE}.data.preprocessing" in targets
    assert targets.isdisjoint(path.removesuffix(".py").replace("/", ".") for path in python_files(PACKAGE))


@pytest.mark.parametrize(
    ("path", "source", "says"),
    [
        ("losses/a.py", "from unoise_monai.networks import UNet", ""),
        ("losses/a.py", "from unoise_monai import checks", ""),
        ("losses/a.py", "from .b import c", ""),
        ("losses/a.py", "from ..networks.unet import UNet", ""),
        ("losses/a.py", "import torch, bundles_of_sticks", ""),
        ("checks.py", "from unoise_monai.types import Image", ""),
        ("__init__.py", "from unoise_monai.unoise import UNoise", ""),
        ("__init__.py", "import bundles", "must not import bundles"),
        ("losses/a.py", "from unoise_monai.data.b import c", "only from its left"),
        ("losses/a.py", "from unoise_monai import data", "only from its left"),
        ("losses/a.py", "from ..data import b", "only from its left"),
        ("losses/a.py", "from .. import data", "only from its left"),
        ("losses/__init__.py", "from ..data import b", "only from its left"),
        ("losses/a.py", "def f():\n    import unoise_monai.cli", "only from its left"),
        ("losses/a.py", "importlib.import_module('unoise_monai.cli')", "only from its left"),
        ("types.py", "from unoise_monai.networks import UNet", "only from its left"),
        ("losses/a.py", "import unoise_monai", "must name a module"),
        ("losses/a.py", "from unoise_monai import UNoise", "must name a module"),
        ("cli.py", "from bundles.x import y", "must not import bundles"),
        ("utils.py", "", "'utils' has no place in the import order"),
        ("helpers/a.py", "", "'helpers' has no place in the import order"),
    ],
)
def test_import_errors(path: str, source: str, says: str) -> None:
    errors = import_errors(source, f"{PACKAGE}/{path}")
    assert len(errors) == bool(says)
    assert all(says in error for error in errors)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("np.eye(4)", 1),
        ("numpy.identity(4)", 1),
        ("torch.eye(n=4)", 1),
        ("np.eye(3)", 0),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("torch.load(\n    path,\n    weights_only=True,\n)", 0),
        ("try:\n    f()\nexcept Exception:\n    pass", 1),
        ("try:\n    f()\nexcept:\n    ...", 1),
        ("for x in y:\n    try:\n        f()\n    except (ValueError, Exception):\n        continue", 1),
        ("with contextlib.suppress(Exception):\n    f()", 1),
        ("try:\n    f()\nexcept KeyError:\n    pass", 0),
        ("try:\n    f()\nexcept Exception as e:\n    raise ValueError('x') from e", 0),
    ],
)
def test_forbidden_code(source: str, count: int) -> None:
    assert len(forbidden_code(source)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a: $torch.load(@path)", 1),
        ("a: $torch.load(str(@path), weights_only=False)", 1),
        ("a: $torch.load(str(@path), map_location=@device, weights_only=True)", 0),
        ("a: $torch.load(@b, weights_only=True)\nc: $torch.load(@d)", 1),
    ],
)
def test_forbidden_config(text: str, count: int) -> None:
    assert len(forbidden_config(text)) == count


def test_line_errors() -> None:
    assert line_errors("a\n" * 3, 3) == []
    assert line_errors("a\n" * 4, 3) == ["must have at most 3 lines, got 4"]
