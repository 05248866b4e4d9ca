"""Freed memory is kept where glibc can be told so, and nothing is touched elsewhere."""

import platform
import subprocess
import sys

import pytest

from monosem.jobs import memory

FAULTS = """
import resource, torch
from monosem.jobs import keep_freed_memory
torch.set_num_threads(1)
if {kept}: keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12): torch.ones(20_000_000)  # small objects split the first blocks: up to five are made anew
before = faults()
for _ in range(3): torch.ones(20_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_block_is_used_again() -> None:
    """80 MB are 19,500 pages of 4 kB, which the system clears anew each time unless they are kept."""
    found = {}
    for kept in (False, True):
        code = FAULTS.format(kept=kept)
        found[kept] = int(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        )
    assert found[True] < 100
    assert found[False] > 10_000 or _huge_pages()


def _huge_pages() -> bool:
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        return "[always]" in file.read()


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    asked: list[str | None] = []
    monkeypatch.setattr(memory.ctypes, "CDLL", asked.append)
    memory.keep_freed_memory()
    assert asked == []
