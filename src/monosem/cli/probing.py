"""`monosem probe`: fit probes at every layer, measure one on other texts, watch one while the model writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import BadInput, check_name
from ..terminal import notice
from .application import group
from .options import (
    Analysis,
    Device,
    Dtype,
    Giving,
    Layers,
    PromptArguments,
    Seed,
    Top,
    Trust,
    argument,
    layer_numbers,
    model_of,
    option,
)
from .output import frame, line

if TYPE_CHECKING:
    from ..benchmarks import Labelled
    from ..models import Model
    from ..probes import Probes
    from ..probes.rows import Position

Data = Annotated[
    str,
    argument(
        "DATA",
        "Labelled texts: a bundled set (sentiment, facts, ...), or a .csv, .jsonl or .jsonl.gz file with columns text, "
        "label and, if texts belong together, group.",
    ),
]
Positive = Annotated[str | None, option("LABEL", "The positive label (default: of two, the last by name).")]
ProbeFile = Annotated[Path, argument("PROBE", "What `monosem probe fit --save` wrote.")]
OtherModel = Annotated[str | None, option("MODEL", "The model, where its name is not the one in the file.")]


@dataclass(frozen=True, kw_only=True)
class OnProbe(Giving):
    """A probe from a file, and the model that it was fitted on."""

    probe: ProbeFile
    model: OtherModel = None
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: Trust = False

    def open(self) -> "tuple[Probes, Model]":
        from ..probes import Probes

        probe = Probes.load(self.probe)
        model = model_of(self, self.probe, probe.model_name)
        probe.check(model)
        return probe, model


def fit(
    asked: Analysis,
    data: Data,
    positive: Positive = None,
    site: Annotated[str, option("SITE", "A site, or a name such as resid_post for every layer.")] = "resid_post",
    layers: Layers = None,
    position: Annotated[
        str | None,
        option("WHERE", "last, mean, or a position such as -2 (default: last; of kinds that read every token, all)."),
    ] = None,
    kind: Annotated[
        str, option("KIND", "Such as lda, logistic, stacked or attention (a wrong one lists all).")
    ] = "logistic",
    target_fpr: Annotated[
        float | None,
        option("SHARE", "Set the threshold to this rate of false alarms, on half of the validation texts."),
    ] = None,
    permutations: Annotated[int, option("N", "Compare with permuted labels, 10 or more times (0: do not).", min=0)] = 0,
    save: Annotated[Path | None, option("FILE", "Write the probe of the best layer, calibrated.")] = None,
    top: Top = 10,
    seed: Seed = 0,
) -> None:
    """Fit probes at every layer; choose one on validation texts.

    Texts are split into training, validation and test, groups and near duplicates kept together. The layer is chosen by
    validation; the test numbers stand beside baselines that see no model. A kind that reads all layers together
    (joined, averaged, stacked) is one probe of `--layers`. docs/probes.md says what each kind is.

    Example: monosem probe fit smollm2 sentiment --kind logistic --save mood.safetensors
    """
    from .. import probes
    from ..probes.thresholds import check_target

    check_name("kind of probe", kind, probes.KINDS)
    if layers is not None and "." in site:
        raise BadInput(f"--layers goes with a name such as resid_post, and --site {site} names one layer")
    given = _asked_for(data, positive, permutations, target_fpr, save)
    row, model = probes.KINDS[kind], asked.load()
    chosen = layer_numbers(layers, model.cfg.n_layers)
    sites = [site] if "." in site else site if chosen is None else [f"{site}.{layer}" for layer in chosen]
    rows = _rows(model, given, positive, sites, position or ("all" if row.tokens else "last"))
    parts, quiet = probes.split(rows.joined() if row.joint else rows, seed=seed), None
    if target_fpr is not None:
        choosing, quiet = probes.held_out(parts.validation, seed=seed, share=0.5)
        parts = parts._replace(validation=choosing)
        check_target(target_fpr, int((~quiet.y).sum()))
    found = probes.survey(parts, kinds=[kind], permutations=permutations, seed=seed, quiet=asked.silent)
    asked.give(found, found.top(top), f"{kind} probes, {data}")
    if not asked.silent:
        notice("; ".join(f"{name} alone: AUROC {one}" for name, one in found.baselines.items()))
    if save is not None:
        best = probes.fit(parts.train, parts.validation, kind=kind, seed=seed).best
        place = best.places[0]
        best = probes.calibrated(best, parts.validation.at(place))
        if target_fpr is not None and quiet is not None:
            best = probes.with_threshold(best, quiet.at(place), target_fpr=target_fpr)
        best.save(save)
        if not asked.quiet:
            notice(f"written: {save}, the probe at {place}")


def evaluate(
    asked: OnProbe,
    data: Data,
    positive: Positive = None,
    prevalence: Annotated[float | None, option("SHARE", "Also the precision where so many are positive.")] = None,
    seed: Seed = 0,
) -> None:
    """Measure a probe on texts that it has not seen.

    Ranking, recall at few false alarms, calibration; each with a 95 % interval over groups drawn again. Texts that it
    was fitted on, or chosen by, and their near duplicates are left out: of the set that it was made from, its test
    texts stay.

    Example: monosem probe evaluate mood.safetensors sentiment
    """
    from .. import probes

    given = _labelled(data)
    _label(given, positive)
    probe, model = asked.open()
    place = probe.places[0]
    sites = [str(one) for one in place.sites]
    rows = _rows(model, given, positive, sites, str(place.position), probe, asked.quiet)
    found = probes.measure(probe, rows, prevalence=prevalence, seed=seed)
    asked.give(found, found.table.dropna(subset="value"), f"{probe.kind} probe at {place}, {data}")
    for name, why in found.config["left_out"].items():
        if not asked.quiet:
            notice(f"not said: {name} {why}")


def monitor(
    asked: OnProbe,
    prompts: PromptArguments,
    how: Annotated[str, option("HOW", "token, mean, max, ema, window or noisy_or.")] = "ema",
    threshold: Annotated[float | None, option("X", "Of the reading, in log-odds (default: the probe's).")] = None,
    max_new_tokens: Annotated[int, option("N", "Length of the continuations.", min=1)] = 40,
) -> None:
    """Watch a probe while the model writes.

    Shows where the reading first passes the threshold, and what watching costs.

    Example: monosem probe monitor mood.safetensors "The film was" --how ema
    """
    from .. import probes

    probe, model = asked.open()
    found = probes.watch(model, prompts, probe, how=how, threshold=threshold, max_new_tokens=max_new_tokens)  # type: ignore[arg-type]

    def show() -> None:
        for prompt, text, first, delay in zip(prompts, found.generation.texts, found.first, found.delay):
            when = "never fires" if first is None else f"fires at token {first}, {delay:+} from the prompt's end"
            line(f"{prompt}{text}\n  {when}")
        counted = found.table.dropna(
            subset="reading"
        )  # the tokens before the first that counts have scores of no worth
        table = counted.groupby("prompt")[["score", "reading"]].agg(["mean", "max"]).round(3)
        table.columns = [" ".join(column) for column in table.columns]
        frame(table.reset_index())

    asked.give(found, show)


def _asked_for(
    data: str, positive: str | None, permutations: int, target_fpr: float | None, save: Path | None
) -> "Labelled":
    """The texts of a fit, after what can be said before the model is loaded."""
    from ..files import check_writable
    from ..probes.controls import check_permutations
    from ..probes.thresholds import check_target

    if target_fpr is not None:
        check_target(target_fpr)
    if permutations:
        check_permutations(permutations)
    if save is not None:
        check_writable(save)
    given = _labelled(data)
    _label(given, positive)
    return given


def _labelled(data: str) -> "Labelled":
    from ..benchmarks import labelled

    return labelled(data)


def _label(given: "Labelled", positive: str | None) -> str:
    """The positive label. Raises `BadInput` where it has to be said, `UnknownName` for one that no text has."""
    if positive is None and len(given.classes) != 2:
        raise BadInput(f"{given.name} has the labels {', '.join(given.classes)!s:.200}: say --positive LABEL")
    label = given.classes[-1] if positive is None else positive
    check_name("label", label, given.classes)
    return label


def _rows(  # type: ignore[no-untyped-def]
    model: "Model",
    given: "Labelled",
    positive: str | None,
    sites: "str | list[str]",
    position: str,
    unseen_by: "Probes | None" = None,
    quiet: bool = True,
):
    """States of the texts; without groups of their own, near duplicates are one."""
    from .. import probes

    label = _label(given, positive)
    groups = probes.near_duplicates(given.texts, given.groups or None)
    seen = set() if unseen_by is None else {groups[i] for i in unseen_by.seen(given.texts).nonzero()[:, 0].tolist()}
    kept = [i for i, one in enumerate(groups) if one not in seen]
    if len(kept) < len(groups) and not quiet:
        notice(
            f"{len(groups) - len(kept)} of {len(groups)} texts are left out: the probe was fitted on or chosen by them"
        )
    if not kept:
        raise BadInput(f"the probe was fitted on all texts of {given.name}: give others")
    texts, labels = [given.texts[i] for i in kept], [given.labels[i] == label for i in kept]
    at = position_of(position)
    return probes.read_rows(model, texts, labels, sites, positions=at, groups=[groups[i] for i in kept])


def position_of(text: str) -> "Position":
    """An index as a number, other words as they are."""
    return int(text) if text.lstrip("-").isdigit() else text  # type: ignore[return-value]


app = group("What can be read from states.", {"fit": fit, "evaluate": evaluate, "monitor": monitor})
