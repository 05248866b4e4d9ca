"""`monosem distance`: how far texts are from usual ones in the model's states."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import BadInput, check_name
from ..terminal import notice
from .application import group
from .options import (
    Device,
    Dtype,
    Giving,
    OnModel,
    PromptArguments,
    Seed,
    Trust,
    argument,
    model_of,
    option,
    prompt_lines,
)
from .output import frame, line

if TYPE_CHECKING:
    import pandas as pd

    from ..models import Model
    from ..probes import Distances, Place, Rows

Texts = Annotated[
    str,
    argument("TEXTS", "A .txt file, one text a line, or labelled texts as `monosem probe fit` takes them."),
]
ROWS, FEW = 20, 8  # rows of a comparison that are shown; at least of each kind of unusual texts
ODD = 0.05  # a text with a smaller p is called unusual
Several = Annotated[list[str], argument("TEXTS...", "Usual texts that the distance has not seen, then unusual ones.")]


@dataclass(frozen=True, kw_only=True)
class OnDistance(Giving):
    """A distance from a file, and the model that it was fitted on."""

    file: Annotated[Path, argument("FILE", "What `monosem distance fit --save` wrote.")]
    model: Annotated[str | None, option("MODEL", "The model, where its name is not the one in the file.")] = None
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: Trust = False

    def open(self) -> "tuple[Distances, Model]":
        from ..probes import Distances

        found = Distances.load(self.file)
        model = model_of(self, self.file, found.model_name)
        found.check(model)
        return found, model


def fit(
    asked: OnModel,
    texts: Texts,
    save: Annotated[Path, option("FILE", "Where to write the distance (.safetensors).")],
    kind: Annotated[
        str, option("KIND", "mahalanobis, relative (with ++: lengths do not count), marginal, knn, cosine, residual.")
    ] = "mahalanobis++",
    site: Annotated[str, option("SITE", "A site, or a name such as resid_post for every layer.")] = "resid_post",
    position: Annotated[str, option("WHERE", "last, mean, or a position such as -2.")] = "mean",
    held_out: Annotated[float, option("SHARE", "Of the texts, for p-values.", min=0.05, max=0.9)] = 0.3,
    seed: Seed = 0,
) -> None:
    """Learn what is usual from texts, with p-values from held-out ones.

    Labels are classes: a text is as far as from the nearest one. Near duplicates are kept together. Covariances are
    shrunken (Ledoit-Wolf).

    Example: monosem distance fit smollm2 sentiment --save usual.safetensors
    """
    from .. import probes
    from ..files import check_writable

    check_name("kind of distance", kind, probes.DISTANCES)
    check_writable(save)
    given = _texts(texts)
    rows = _rows(asked.load(), given, [site] if "." in site else site, position)
    seen, held = probes.held_out(rows, held_out, seed=seed)
    found = probes.Distances.fit(seen, kind).against(held)
    found.save(save)
    line(f"{kind} of {len(seen)} texts at {len(found.places)} places; {len(held)} held-out texts for p-values")
    if not asked.quiet:
        notice(f"written: {save}")


def score(asked: OnDistance, prompts: PromptArguments) -> None:
    """How far prompts are from what is usual.

    p is the share of held-out usual texts that are at least as far (all layers together): right whatever their
    distribution, and never below 1 / (held-out texts + 1).

    Example: monosem distance score usual.safetensors "The film was dull." "01100101 0111"
    """
    import pandas as pd

    from ..results import Tabled

    found, model = asked.open()
    rows = _at_places(model, found.places, list(prompts), [0] * len(prompts))
    values = found.score(rows) if len(found.places) == 1 else found.combined(rows)[None]
    p = found.p_values(rows, how="mean")
    table = pd.DataFrame({"prompt": list(prompts), "distance": values[0].numpy(), "p": p.numpy()})
    held = 0 if found.held is None else found.held.shape[1]
    least = f"; with {held} held-out texts p is at least {1 / (held + 1):.2g}" if held else ""
    asked.give(Tabled(table), table, f"{found.kind}, {len(found.places)} places{least}")


def compare(
    asked: OnDistance,
    texts: Several,
    examples: Annotated[
        Path | None, option("FILE", "A few other unusual texts, one a line, that give each layer a weight.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """How well it tells unusual texts from usual ones.

    AUROC at every place and together, with 95 % intervals, also with lengths alike; the false alarms at which 95 % are
    found.

    Example: monosem distance compare usual.safetensors new.txt facts
    """
    from .. import probes

    if len(texts) < 2:
        raise BadInput("give usual texts that the distance has not seen, and then at least one set of unusual ones")
    given, few = [_texts(one)[:2] for one in texts], None if examples is None else _texts(str(examples))[:2]
    found, model = asked.open()
    given[0] = _unseen(found, texts[0], *given[0], asked.quiet)
    usual, *unusual = (_at_places(model, found.places, *one) for one in given)
    detectors: dict[str, Any] = {found.kind: found}
    if few is not None:
        detectors["ensemble"] = probes.LayerEnsemble.fit(found, _at_places(model, found.places, *few))
    result = probes.ood(detectors, usual, dict(zip(texts[1:], unusual)), seed=seed)
    shown = [
        *(["detector"] if examples else []),
        "place",
        "against",
        "auroc",
        "low",
        "high",
        "auroc_lengths_alike",
        "fpr_at_95",
        "found_at_5",
    ]
    title = f"{found.kind}, by AUROC; the single places are the best of {len(found.places)} on these same texts"
    asked.give(result, lambda: frame(_best(result.table, [*map(str, found.places)])[shown], title))
    called = 0.0 if found.held is None else float((found.p_values(usual, how="mean") <= ODD).double().mean())
    if called > 4 * ODD and not asked.quiet:
        notice(
            f"{called:.0%} of {texts[0]} have p <= {ODD:g}, where about {ODD:.0%} of usual texts would: they are not "
            "like the texts that the distance was fitted on, so the table does not say how well it finds unusual ones"
        )


def _best(table: "pd.DataFrame", single: list[str]) -> "pd.DataFrame":
    """Of each kind of unusual texts the detectors of all places together, and the best single places."""
    import pandas as pd

    parts, kept = [part for _, part in table.groupby("against", sort=False)], []
    for part in parts:
        one = part["place"].isin(single)
        n = max(ROWS // len(parts), FEW) - int((~one).sum())
        kept.append(pd.concat([part[~one], part[one].nlargest(n, "auroc")]).sort_values("auroc", ascending=False))
    return pd.concat(kept)


def _unseen(
    found: "Distances", name: str, texts: list[str], classes: list[Any], quiet: bool
) -> tuple[list[str], list[Any]]:
    """Usual texts that the distance has not seen. Raises `BadInput` where fewer than two are left."""
    new = [i for i, seen in enumerate(found.seen(texts).tolist()) if not seen]
    if len(new) < 2 < len(texts):
        raise BadInput(f"the distance was fitted on all texts of {name}: give usual ones that it has not seen")
    if len(new) < len(texts) and not quiet:
        notice(f"{len(texts) - len(new)} of {len(texts)} texts of {name} are left out: the distance was fitted on them")
    return [texts[i] for i in new], [classes[i] for i in new]


def _texts(given: str) -> tuple[list[str], list[Any], Any]:
    """Texts, their classes, and their groups."""
    from ..benchmarks import labelled

    if Path(given).suffix == ".txt":
        if not (texts := prompt_lines(Path(given))):
            raise BadInput(f"{given} holds no texts; write one a line")
        return texts, [0] * len(texts), None
    data = labelled(given)
    return list(data.texts), list(data.labels), data.groups or None


def _rows(model: "Model", given: tuple[list[str], list[Any], Any], sites: "str | list[str]", position: str) -> "Rows":
    from .. import probes
    from .probing import position_of

    texts, classes, groups = given
    together = probes.near_duplicates(texts, groups)
    at = position_of(position)
    return probes.read_rows(model, texts, [0] * len(texts), sites, positions=at, groups=together).with_classes(classes)


def _at_places(model: "Model", places: "tuple[Place, ...]", texts: list[str], classes: list[Any]) -> "Rows":
    """Rows at the places of a distance."""
    from .. import probes

    sites = [str(place.site) for place in places]
    rows = probes.read_rows(model, texts, [0] * len(texts), sites, positions=places[0].position)
    return rows.with_classes(classes)


app = group("How far texts are from usual ones.", {"fit": fit, "score": score, "compare": compare})
