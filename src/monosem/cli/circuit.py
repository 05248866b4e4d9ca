"""`monosem circuit`: the edges of a model that make an answer, judged, with a report."""

from pathlib import Path
from typing import Annotated, Any

from ..errors import BadInput, require
from ..terminal import notice, one_line
from .application import resumable
from .options import OnModel, Set, fields, flag, option
from .output import as_json, frame, line, show
from .patch.pairs import Pairs


def circuit(
    pairs: Pairs,
    asked: OnModel,
    method: Annotated[str, option("NAME", "eap-ig, eap, relp, eap-gp, ifr, ... (a wrong one lists all).")] = "eap-ig",
    edges: Annotated[int, option("N", "How many edges the circuit has, before pruning.", min=1)] = 1000,
    set: Set = None,
    out: Annotated[Path | None, option("DIR", "Folder of the report (default: runs/circuit-TASK).")] = None,
    fresh: Annotated[bool, flag("Forget what an earlier run left in the folder.")] = False,
) -> None:
    """Find the circuit of an answer, with a report.

    Scores every edge of the model on one half of the pairs, chooses a circuit, and judges it on the other half: its
    faithfulness, and how faithful circuits of growing size are (CPR, CMD); whether it is needed, complete and minimal.
    The largest edges are patched exactly. Interrupted, the same command goes on where it stopped.
    docs/circuits.md says what each number means.

    Example: monosem circuit smollm2 --task ioi --n 16 --edges 1000

    Example: monosem circuit smollm2 --pairs mine.csv --method eap --set check=0
    """
    from ..circuits import find_circuit
    from ..circuits.config import CircuitConfig
    from ..files import check_writable

    require("plotly", "plots")
    pairs.check(one_token="circuits")
    folder = out or Path("runs") / f"circuit-{pairs.name}"
    settings: dict[str, Any] = {"method": method, "edges": edges, "seed": pairs.seed, "metric": pairs.metric} | fields(
        set
    )
    CircuitConfig.parse(settings)  # what is wrong is said before anything is loaded
    check_writable(folder / "report.html")
    if pairs.n == 1:
        raise BadInput("a circuit is found on one half of the pairs and judged on the other: give --n 2 or more")
    model, prompts = pairs.load(asked)
    with resumable(folder):
        found = find_circuit(
            model, prompts, folder=folder, settings=settings, fresh=fresh, quiet=asked.silent
        )  # fmt: skip
    if asked.json:
        as_json(found.results)
    elif asked.quiet:
        line(found.html)
    else:
        frame(_top(found), "largest edges")
        for row in found.results["evidence"]["numbers"][:2]:
            show(f"{row['number']}: {row['value']:.3f}")
        for row in filter(None, (found.results["circuit"], found.results["other_way"])):
            show(
                f"{row['edges']:,} edges by {row['circuit']} score: {row['score']:.3f} of the effect, "
                f"{row['kl']:.3f} nats from the model (corrupted prompts: {row['kl_of_nothing']:.3f})"
            )
        curve = found.results["curve"]
        show(f"CPR {curve['cpr']:.3f}, CMD {curve['cmd']:.3f}")
        for note in found.results["notes"]:
            show(f"note: {one_line(note)}")
        notice(f"report: {found.html}")


def _top(found: Any) -> Any:
    import pandas as pd

    return pd.DataFrame(found.results["edges"][:15])[["edge", "score"]]
