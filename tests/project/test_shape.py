"""The shape of the source: which way imports run, how long files and functions are, one meaning a name, plain words."""

import ast
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "monosem"

# The rooms from the bottom to the top: a file imports its own room and rooms that stand before it. The package's own
# `__init__`, of which files import the version, is the ground.
ROOMS = [
    "__init__ errors terminal hub reading files progress statistics logistic covariance plots pages results jobs",
    "models",
    "edits metrics data organisms defences judges",
    "activations dictionaries",
    "components",
    "patching",
    "circuits",
    "lenses",
    "graphs",
    "latents",
    "directions",
    "probes",
    "steering studies benchmarks methods robustness",
    "saelens",
    "explorer",
    "cli",
    "__main__",
]
ORDER = " ".join(ROOMS).split()

MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 60, 12

# What plain English does not need, as regular expressions between word boundaries
WORDS = [
    *("that of", "those of", "(is|are) none of (these|theirs|them)", "is none,? and", "(has|have) none of that"),
    *(r"(has|have) not (?!\w+(ed|en|wn|ld|de|ne|un)\b)\w+", "(has|have) not$", r"which \S+ (has|have) not"),
    *("by hand of", "for this to", "if need be", "one's own", "the same of", "wherefore", "hereby", "thereof"),
]


# ---------------------------------------------------------------------- what the source holds
@cache
def files() -> dict[str, ast.Module]:
    """`models/model.py` -> its syntax tree."""
    paths = sorted(SOURCE.rglob("*.py"))
    return {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def target(*parts: str) -> str | None:
    """The file of a module inside the package; None where there is none of that name."""
    path = "/".join(parts)
    return next((file for file in (f"{path}.py", f"{path}/__init__.py".lstrip("/")) if file in files()), None)


def imported(file: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The files of the package that one statement names; a name that is a submodule stands for its file."""
    if isinstance(node, ast.Import):
        modules = [alias.name.split(".") for alias in node.names]
        yield from (found for head, *rest in modules if head == "monosem" and (found := target(*rest)))
        return
    stem = (node.module or "").split(".") if node.module else []
    if node.level:
        package = file.split("/")[:-1]
        stem = [*package[: len(package) - node.level + 1], *stem]
    elif stem[:1] == ["monosem"]:
        stem = stem[1:]
    else:
        return
    for alias in node.names:
        found = target(*stem, alias.name) or target(*stem)
        if found:
            yield found


@cache
def imports() -> dict[str, set[str]]:
    """File -> files that it imports: at the top, in functions and under `TYPE_CHECKING`."""
    found: dict[str, set[str]] = {}
    for file, tree in files().items():
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name for node in nodes for name in imported(file, node)} | set(named(tree))
        found[file] = names - {file}
    return found


def named(tree: ast.Module) -> Iterator[str]:
    """Files of the package that code names otherwise: `monosem.lenses` of the whole package, `import_module("...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "monosem":
            found = target(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            text = getattr(node.args[0], "value", None) if node.args else None
            head, *rest = text.split(".") if isinstance(text, str) else [""]
            found = target(*rest) if head == "monosem" else None
        else:
            continue
        if found:
            yield found


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
            yield from functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


# ---------------------------------------------------------------------- offences, each as one line
def circles() -> Iterator[str]:
    """Files that import themselves, through others."""
    for file in files():
        seen, waiting = set(), list(imports()[file])
        while waiting:
            at = waiting.pop()
            if at not in seen:
                seen.add(at)
                waiting += imports()[at]
        if file in seen:
            yield f"{file}: circle"


def upward_imports() -> Iterator[str]:
    for file, names in imports().items():
        for name in sorted(names):
            if ORDER.index(room(name)) > ORDER.index(room(file)):
                yield f"{file}: imports {name}, a room above"


def long_files() -> Iterator[str]:
    for file in files():
        if (SOURCE / file).read_text(encoding="utf-8").count("\n") > MOST_LINES:
            yield f"{file}: over {MOST_LINES} lines"


def long_functions() -> Iterator[str]:
    for file, tree in files().items():
        for name, function in functions(tree):
            first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
            if (function.end_lineno or first) - first + 1 > MOST_FUNCTION_LINES:
                yield f"{file}: {name} has over {MOST_FUNCTION_LINES} lines"


def many_parameters() -> Iterator[str]:
    """`**options` counts as one; the instance or class does not count."""
    for file, tree in files().items():
        for name, function in functions(tree):
            if any(part.startswith("_") and not part.startswith("__") for part in name.split(".")):
                continue
            given = function.args
            names = [one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]]
            count = len(names) - (names[:1] in (["self"], ["cls"])) + bool(given.vararg) + bool(given.kwarg)
            if count > MOST_PARAMETERS:
                yield f"{file}: {name} has over {MOST_PARAMETERS} parameters"


def public_names(module: ModuleType) -> dict[str, object]:
    """What `__all__` offers; without one, the functions and classes that are made there."""
    names = getattr(module, "__all__", None)
    if names is None:
        here = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        return {
            name: value
            for name, value in here.items()
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        }
    return {name: getattr(module, name) for name in names}


def ambiguous_names() -> Iterator[str]:
    """Names that mean different things in two rooms."""
    meanings: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in ORDER:
        if one in ("__init__", "cli") or not target(one):
            continue
        for name, value in public_names(import_module(f"monosem.{one}")).items():
            meanings[name][id(value)].append(one)
    for name, found in sorted(meanings.items()):
        if len(found) > 1:
            yield f"names: {name} in {', '.join(sorted(one for rooms in found.values() for one in rooms))}"


def texts() -> Iterator[tuple[str, str]]:
    """What a user reads: string literals, docstrings and templates of the source, and the documentation."""
    for file, tree in files().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield file, node.value
    for path in SOURCE.rglob("*.jinja"):
        yield path.relative_to(SOURCE).as_posix(), path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def words() -> Iterator[str]:
    patterns = {phrase: re.compile(rf"\b{phrase}\b", re.IGNORECASE) for phrase in WORDS}
    found = set()
    for file, text in texts():
        flat = " ".join(text.split())
        found |= {f"{file}: says {hit.group().lower()!r}" for p in patterns.values() for hit in p.finditer(flat)}
    yield from sorted(found)


OFFENCES = [circles, upward_imports, long_files, long_functions, many_parameters, ambiguous_names, words]


# ---------------------------------------------------------------------- the tests
@cache
def offences() -> dict[str, list[str]]:
    """Room (or "names", or "docs") -> what offends."""
    by_room: dict[str, list[str]] = defaultdict(list)
    for offence in sorted(line for look in OFFENCES for line in look()):
        file = offence.partition(":")[0]
        by_room["docs" if file.endswith(".md") else room(file)].append(offence)
    return by_room


@pytest.mark.parametrize("one", [*ORDER, "names", "docs"])
def test_nothing_offends(one: str) -> None:
    assert offences().get(one, []) == []


def test_every_file_is_in_a_room() -> None:
    assert {room(file) for file in files()} - {*ORDER} == set()


def test_a_run_crosses_at_most_seven_files(tiny_model: Callable[..., Any]) -> None:
    model, crossed = tiny_model("llama"), set()

    def note(frame: FrameType, *_: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            crossed.add(path.relative_to(SOURCE).as_posix())

    sys.setprofile(note)
    try:
        model.run("the cat sat", capture="resid_post.1")
    finally:
        sys.setprofile(None)
    assert "models/running/run.py" in crossed
    assert len(crossed) <= 7, crossed


def test_the_contributors_see_the_same_order() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page[page.index("| rooms |") : page.index("The larger rooms")]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:] if line]
    assert [name for row in rows for name in row] == ORDER[1:]


def test_the_looks_see_what_they_should() -> None:
    """`monosem.cli` is a package whose files import each other and rooms below: none of that may go unseen."""
    assert {"errors.py", "cli/output.py"} <= imports()["cli/options.py"]
    assert "__init__.py" in imports()["cli/__init__.py"]
    assert sum(map(len, imports().values())) > 500
    hidden = "import monosem\nmonosem.lenses.read\nimport_module('monosem.models.model')\nmonosem.__version__"
    assert set(named(ast.parse(hidden))) == {"lenses/__init__.py", "models/model.py"}
    assert len(list(texts())) > 5000


def test_no_two_test_files_have_one_name():
    """pytest imports them by name: the second one would end the collection of all."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
