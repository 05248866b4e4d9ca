"""Starting is cheap: the package and the help of the commands import nothing heavy (no clock, the modules are read)."""

import subprocess
import sys
from types import ModuleType

import pytest

HEAVY = ("torch", "transformers", "pandas", "plotly", "numpy", "scipy", "sklearn", "pyarrow", "safetensors")

LOOK = f"""
import sys
try:
    {{code}}
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *sorted(set(sys.modules) & set({HEAVY!r})))
"""


def heavy_after(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", LOOK.format(code=code)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


COMMANDS = [
    "--help",
    "--version",
    "latents --help",
    "train --help",
    "demo --help",
    "lens tuned --help",
    "patch sweep --help",
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_the_command_line_starts_without_anything_heavy(arguments: str) -> None:
    assert heavy_after(f"from monosem.cli import main; sys.argv = ['monosem', *{arguments.split()!r}]; main()") == []


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert heavy_after("import monosem, monosem.errors, monosem.files, monosem.progress") == []


def test_what_needs_no_model_does_not_import_transformers_models() -> None:
    """Half of the time that such a command would take."""
    rooms = "models, dictionaries, latents, directions, probes, circuits, steering, benchmarks, explorer, studies"
    rooms += ", methods, robustness"
    look = f"import sys; from monosem import {rooms}; print('transformers.modeling_utils' in sys.modules)"
    look += "; from monosem.models import load_model; print('transformers.modeling_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_the_look_sees_heavy_imports() -> None:
    assert "numpy" in heavy_after("import numpy")


def test_every_public_name_loads() -> None:
    import monosem

    assert [name for name in monosem.__all__ if getattr(monosem, name) is None] == []
    assert set(monosem.__all__) <= set(dir(monosem))


def test_every_public_room_says_what_it_offers() -> None:
    """Without a list, `from room import *` also brings what the room itself imports, such as `torch`."""
    import monosem

    rooms = [room for name in monosem.__all__ if isinstance(room := getattr(monosem, name), ModuleType)]
    assert len(rooms) > 20
    for room in [*rooms, monosem.errors]:
        offered = [getattr(room, name) for name in room.__all__]
        others = [one for one in offered if isinstance(one, ModuleType) and not one.__name__.startswith("monosem.")]
        assert not others, room


def test_edits_of_weights_come_with_edits() -> None:
    """In a process of its own: elsewhere another import may have brought them."""
    code = "from monosem import edits; edits.weights.orthogonalise"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import monosem

    with pytest.raises(AttributeError, match="nonsense"):
        _ = monosem.nonsense
