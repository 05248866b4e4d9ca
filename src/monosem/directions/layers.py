"""Which site a layer number means in each tool, and back: one table, `TOOLS`.

Blocks are numbered from 0. The output of block l is `resid_post.l`, and the same stream is `resid_pre.(l + 1)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadInput, check_name
from ..models import Site

Number = Callable[[int, int], Site | None]  # a number of the tool and how many blocks there are -> the site, if any


@dataclass(frozen=True)
class Tool:
    """How a tool counts.

    Attributes:
        site: what a number means. note: in words, with what goes wrong easily.
        numbers: the numbers that it uses, of a model with so many blocks.
    """

    site: Number
    numbers: Callable[[int], range]
    note: str


def site_of(tool: str, number: int, n_layers: int) -> Site:
    """The site that a layer number of another tool means. Raises `UnknownName`; `BadInput` for a number it has not."""
    check_name("tool", tool, TOOLS)
    site = TOOLS[tool].site(number, n_layers) if number in TOOLS[tool].numbers(n_layers) else None
    if site is None:
        known = TOOLS[tool].numbers(n_layers)
        raise BadInput(f"{tool} has layers {known[0]} to {known[-1]} of {n_layers} blocks, not {number}")
    return site


def number_of(tool: str, site: Site, n_layers: int) -> int:
    """The number by which another tool means a site. Raises `BadInput` for a site that it cannot say."""
    check_name("tool", tool, TOOLS)
    for number in TOOLS[tool].numbers(n_layers):
        meant = TOOLS[tool].site(number, n_layers)
        if meant is not None and same_stream(meant, site, n_layers):
            return number
    raise BadInput(f"{tool} has no layer number for {site}: {TOOLS[tool].note}")


def same_stream(one: Site, other: Site, n_layers: int | None = None) -> bool:
    """Whether two sites are the same activation."""
    return _as_post(one, n_layers) == _as_post(other, n_layers)


def _as_post(site: Site, n_layers: int | None) -> Site:
    if site.name == "final_input" and n_layers is not None:
        return Site("resid_post", n_layers - 1)
    return Site("resid_post", site.layer - 1) if site.name == "resid_pre" and site.layer else site


def _output(number: int, n_layers: int) -> Site:
    return Site("resid_post", number % n_layers)


def _input(number: int, n_layers: int) -> Site:
    return Site("resid_pre", number)


def _hidden(number: int, n_layers: int) -> Site:
    """`output_hidden_states`: the embeddings, then the output of every block, the last of which is normalised."""
    index = number % (n_layers + 1)
    if index == n_layers:
        return Site("final_norm")
    return Site("resid_post", index - 1) if index else Site("resid_pre", 0)


def _stream(number: int, n_layers: int) -> Site:
    return Site("resid_post", number - 1) if number else Site("resid_pre", 0)


def _blocks(n: int) -> range:
    return range(n)


TOOLS: dict[str, Tool] = {
    "repeng": Tool(
        _output,
        lambda n: range(-n, n),
        "key i is the output of block i (-1 is the last, which it reads after the final norm and adds before it)",
    ),
    "llama.cpp": Tool(
        _output, lambda n: range(1, n), "direction.N is added to the output of block N; block 0 has none: leave it out"
    ),
    "steering-vectors": Tool(_output, _blocks, "key i is the output of the module that matched as layer i"),
    "caa": Tool(_output, _blocks, "layer i is the output of block i; read at the answer letter, token -2"),
    "ibm": Tool(
        _output, _blocks, "key i was read at the output of block i, and is added to the input of block i there"
    ),
    "aisteer360": Tool(_output, _blocks, "layer i is the output of block i"),
    "arditi": Tool(_input, _blocks, "layer i is the input of block i"),
    "cosmic": Tool(_input, _blocks, "layer i is the input of block i"),
    "repe": Tool(_hidden, lambda n: range(-n, 0), "-1 to -L index hidden_states: -1 is after the final norm"),
    "transformers": Tool(
        _hidden, lambda n: range(n + 1), "hidden_states[i + 1] is the output of block i, the last after the final norm"
    ),
    "heretic": Tool(_hidden, lambda n: range(n + 1), "an index of hidden_states: block i is i + 1"),
    "vllm": Tool(
        _stream, lambda n: range(n + 1), "0 is the embeddings, i + 1 the stream after block i, never normalised"
    ),
}
