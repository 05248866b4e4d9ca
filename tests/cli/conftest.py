"""What tests of the command line share: a folder as a user has it, and a way to run a line in it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from monosem.cli import app
from tiny_home import make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a dictionary of it, text, prompts and a concept; do not write to what is there."""
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`run("steer sae 3 20", "the cat")`: the first argument is split at spaces; the current folder is `home`."""
    monkeypatch.chdir(home)
    runner = CliRunner()
    return lambda line, *more: runner.invoke(app, [*line.split(), *map(str, more)], prog_name="monosem")
