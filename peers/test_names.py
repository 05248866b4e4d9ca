"""docs/transformerlens-names.md lists every public name of the installed TransformerLens, and no other."""

import re
from pathlib import Path

import pytest

from lens import BRIDGE, IDS, lens, public_names

PAGE = (Path(__file__).parents[1] / "docs" / "transformerlens-names.md").read_text(encoding="utf-8")


def listed(section: str) -> set[str]:
    """Names of a section that the page says this version has."""
    part = PAGE[PAGE.index(f"## {section}") :].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w*) \| (\w*) \|", part, re.M)
    return {name for name, *marks in rows if marks[BRIDGE]}


@pytest.mark.parametrize("section", ["The model", "The cache"])
def test_the_page_lists_what_the_package_has(section: str) -> None:
    found = set()
    for family in ("gpt2", "llama"):
        model = lens(family)
        found |= public_names(model if section == "The model" else model.run_with_cache(IDS)[1])
    assert found - listed(section) == set(), "not in the page"
    assert listed(section) - found == set(), "not in the package"
    assert len(found) > 20
