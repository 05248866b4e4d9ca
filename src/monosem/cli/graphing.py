"""`monosem graph`: the attribution graph of a prompt, as a page to look around in."""

from typing import TYPE_CHECKING, Annotated

from ..errors import BadInput, check_name
from .options import Analysis, Top, argument, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pandas import DataFrame

    from ..graphs import AttributionGraph


def graph(
    asked: Analysis,
    prompt: Annotated[str, argument("PROMPT", "The prompt.")],
    token: Annotated[
        str | None, option("TOKEN", "The token whose logit is explained (default: the likeliest).")
    ] = None,
    wrong: Annotated[str | None, option("TOKEN", "Subtract the logit of this token.")] = None,
    transcoder: Annotated[
        list[str] | None, option("NAME", "A transcoder, whose latents are nodes of its layer. May be repeated.")
    ] = None,
    neurons: Annotated[str, option("up|half|none", "How neurons of other layers read; none: errors alone.")] = "up",
    nodes: Annotated[int, option("N", "Neurons or latents at most, the most influential.", min=1)] = 2000,
    keep: Annotated[float, option("SHARE", "Prune to the nodes with this share of the influence.", min=0, max=1)] = 0.8,
    head: Annotated[
        list[str] | None,
        option("LAYER.HEAD", "Why this head looks where it does from the last token. May be repeated."),
    ] = None,
    memory: Annotated[str, option("SIZE", "What the graph may take, such as 4GB.")] = "2GB",
    top: Top = 10,
) -> None:
    """Trace how a prompt becomes its answer, through neurons or latents.

    Attention patterns and norms are frozen; then all tokens, neurons and errors give to each other and to the logits
    what adds up exactly. The picture (.html) shows layers by tokens: click a node for what it reads and writes. As
    .json it is a graph file that other viewers read.

    Example: monosem graph smollm2 "The capital of Italy is" --out graph.html
    """
    from ..dictionaries import Dictionary, load_dictionary
    from ..graphs import attribution_graph, qk_attribution
    from ..latents import index_of

    heads = _check(neurons, memory, keep, head or ())
    model = asked.load()
    given = [load_dictionary(name) for name in transcoder or ()]
    whole = attribution_graph(
        model,
        prompt,
        given,  # type: ignore[arg-type]
        tokens=token,
        wrong=wrong,
        n_nodes=nodes,
        neurons=neurons,  # type: ignore[arg-type]
        memory=memory,
        quiet=asked.silent,
    )
    found = whole if keep == 1 else whole.prune(keep)
    shown = {
        "heads": [qk_attribution(found, *one) for one in heads],
        "indexes": [index for one in given if isinstance(one, Dictionary) and (index := index_of(one))],
    }
    best, title = _most_influential(found, top)
    scores = ", ".join(f"{name} {value:.2f}" for name, value in whole.scores.items() if "circuit" not in name)
    asked.give(found, best, f"most influential nodes ({scores}{title})", **shown)


def _check(neurons: str, memory: str, keep: float, heads: "Sequence[str]") -> list[tuple[int, int]]:
    """What can be told wrong without a model; the heads."""
    from ..graphs.units import NEURONS
    from ..models.running.budget import bytes_of

    check_name("rule for neurons", neurons, (*NEURONS, "none"))
    bytes_of(memory)
    if keep == 0:
        raise BadInput("--keep is a share of the influence, above 0 and at most 1")
    return [_numbers(one) for one in heads]


def _most_influential(found: "AttributionGraph", top: int) -> tuple["DataFrame", str]:
    """The table, and what its title says of nodes that it leaves out."""
    from ..graphs.evidence import evidence
    from ..graphs.graph import SINK

    units, left_out = found.table[found.table["kind"].isin(("neuron", "latent", "token"))], ""
    sunk = found.at_first_token
    if sunk > SINK and len(found.tokens) > 1:
        units = units[(units["kind"] == "token") | (units["position"] > 0)]
        has = f"have {sunk:.0%} of the influence of neurons and latents"
        left_out = f"; without nodes at the first token, which read no other, and {has}"
    best = units.nlargest(top, "influence")[["id", "kind", "activation", "influence", "label"]]
    promoted = evidence(found)
    says = [" ".join(map(repr, promoted[one]["top"][:3])) if one in promoted else "" for one in best["id"]]
    return best.assign(promotes=says), left_out


def _numbers(head: str) -> tuple[int, int]:
    """`20.2`: layer 20, head 2."""
    layer, _, number = head.partition(".")
    if not (layer.isdecimal() and number.isdecimal()):
        raise BadInput(f"a head is written LAYER.HEAD, such as 20.2, not {head!r}")
    return int(layer), int(number)
