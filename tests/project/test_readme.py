"""README.md's examples run as they stand; those of docs/ name what there is and call it with arguments it takes."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version
from typer.main import get_command

import monosem as ms
from monosem.cli import app
from monosem.cli.training import Training
from monosem.dictionaries.training.architectures import ARCHITECTURES
from monosem.dictionaries.training.config import config_of
from monosem.models import Model

ROOT = Path(__file__).parents[2]
# pages whose Python examples, from the top of the page to its end, make a session
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("sites-and-runs", "patching", "lenses", "components"))]
PAGES += [f"docs/{name}.md" for name in ("transformerlens", "dictionaries", "latents", "studies", "function-vectors")]
PAGES += ["docs/training.md", "docs/interventions.md", "docs/directions.md", "docs/probes.md"]
EVERY_PAGE = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
# Calls in README.md that take minutes: their arguments are checked, and tests of their own run them
SLOW = {"ms.patching.localise": "test_localising.py", "ms.studies.run": "test_study.py"}
BUILTINS = set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def statements(page: str) -> Iterator[ast.stmt]:
    for block in blocks(page, "python"):
        yield from ast.parse(block).body


def chain(node: ast.expr) -> list[str]:
    """`ms.patching.sweep` as names; empty for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return [node.id]
    inner = chain(node.value) if isinstance(node, ast.Attribute) else []
    return [*inner, node.attr] if inner else []  # type: ignore[attr-defined]


def resolved(names: list[str], known: dict[str, Any]) -> Any:
    """What a chain of names means; None where its beginning is a value that only a run would give."""
    if not names or names[0] not in known:
        return None
    found = known[names[0]]
    for name in names[1:]:
        if isinstance(found, property) or not (inspect.ismodule(found) or inspect.isclass(found)):
            return None
        # AttributeError: the page names what is not there; of an instance nothing is known here
        found = getattr(found, name) if inspect.ismodule(found) else getattr(found, name, None)
    return found


def check_calls(statement: ast.AST, known: dict[str, Any]) -> list[str]:
    """Every call of something known takes these arguments; returns what was called."""
    found = []
    for attribute in [node for node in ast.walk(statement) if isinstance(node, ast.Attribute)]:
        resolved(chain(attribute), known)
    for call in [node for node in ast.walk(statement) if isinstance(node, ast.Call)]:
        names = chain(call.func)
        function = resolved(names, known)
        if function is None or any(isinstance(argument, ast.Starred) for argument in call.args):
            continue
        own = [None] if names[0] == "model" and not isinstance(function, staticmethod) else []  # self
        try:
            signature = inspect.signature(function)
        except ValueError:  # torch's own functions, in C
            continue
        given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        try:
            signature.bind(*own, *call.args, **given)
        except TypeError as error:
            raise AssertionError(f"{ast.unparse(call)}: {error}") from error
        found.append(".".join(names))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_examples_name_what_there_is(page: str) -> None:
    known: dict[str, Any] = {"ms": ms, "model": Model}
    defined, called = set(BUILTINS), []
    for statement in statements(page):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            exec(ast.unparse(statement), known)
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.alias):
                defined.add(node.asname or node.name.partition(".")[0])
        loaded = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert loaded <= defined, f"{page}: {ast.unparse(statement)} uses {loaded - defined}"
        called += check_calls(statement, known)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            alias = resolved(chain(statement.value), known)
            if alias is not None:
                known[statement.targets[0].id] = alias
    assert len(called) >= 5  # else nothing was checked


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_commands_are_those_of_the_command_line(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    root: Any = get_command(app)
    for line in re.findall(r"^(?: {4})?monosem ((?!--)[^`\n]*)$", text, re.M):
        command, arguments = root, shlex.split(line, comments=True)
        context = root.make_context("monosem", list(arguments))
        while hasattr(command, "resolve_command"):
            name, command, arguments = command.resolve_command(context, arguments)
            if name in ("MODEL", "COMMAND"):
                break
            context = command.make_context(name, list(arguments), parent=context)  # usage errors raise


def test_the_runs_of_the_training_pages_are_possible() -> None:
    """Each YAML file and command line of a training run fits together as a config."""
    made: list[Any] = []
    for page in EVERY_PAGE:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        held = [yaml.safe_load(block) for block in blocks(page, "yaml")]
        made += [config_of(one) for one in held if "width" in one or "dictionaries" in one]
        for line in re.findall(r"^(?: {4})?monosem train ([^`\n]*)$", text, re.M):
            command: Any = get_command(app)
            given = command.commands["train"].make_context("train", shlex.split(line, comments=True)).params
            if given["config"] is None:
                made.append(Training(**{name: given.get(name) for name in Training.__dataclass_fields__}).config(None))
    architectures = {one.architecture for config in made for one in config.each.values()}
    assert architectures == set(ARCHITECTURES)


@pytest.mark.parametrize("page", [*EVERY_PAGE, "CONTRIBUTING.md", "bench/README.md", "findings/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.smollm2
def test_readme_runs(smollm2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ms, "load_model", lambda name: {"smollm2": smollm2}[name])  # it is in memory already
    space: dict[str, Any] = {}
    ran, slow = 0, set()
    for statement in statements("README.md"):
        source = ast.unparse(statement)
        if name := next((name for name in SLOW if f"{name}(" in source), None):
            slow.add(name)  # test_examples_name_what_there_is looks at its arguments
            continue
        if isinstance(statement, ast.Expr):
            assert eval(source, space) is not None or source.startswith("print("), source
        else:
            exec(source, space)
        if source.startswith("pairs = "):
            shortest = space["pairs"].clean.lengths.argmin(keepdim=True)
            space["pairs"] = space["pairs"][shortest]  # one shows as well as eight that the calls fit together
        ran += 1
    assert slow == set(SLOW)
    assert ran >= 25
    assert space["run"]["resid_post.15"].shape == (1, 3, smollm2.cfg.d_model)
    assert space["found"].best >= 0


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed():
    """`make test-oldest` runs what pyproject.toml allows, and `make test` at least that."""
    allowed = dict(re.findall(r'"(torch|transformers)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    oldest = dict(re.findall(r"(torch|transformers)==([\d.]+)", (ROOT / "Makefile").read_text()))
    pinned = dict(re.findall(r"^(torch|transformers)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M))
    for name in ("torch", "transformers"):
        assert Version(oldest[name]) == Version(allowed[name]) <= Version(pinned[name])
