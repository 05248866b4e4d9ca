"""`monosem robustness`: how far a behaviour survives attacks, and what these and defences cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from .application import resumable
from .options import Printing, Set, Trust, argument, fields, flag, option
from .output import as_json, frame, line

JUDGES = "refusal, refusal-start, arditi, language:fr, ... or model"


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What decides whether a response shows the behaviour, instead of the file's judge."""

    judge: Annotated[str | None, option("NAME", f"Another judge: {JUDGES}.")] = None
    judge_url: Annotated[str | None, option("URL", "Of judge model: an OpenAI-compatible endpoint, up to /v1.")] = None
    judge_model: Annotated[str | None, option("NAME", "Of judge model: its name there; key: MONOSEM_JUDGE_KEY.")] = None

    @property
    def instead(self) -> dict[str, Any]:
        options = {"url": self.judge_url, "model": self.judge_model}
        given = {name: value for name, value in options.items() if value is not None}
        return {"judge": self.judge, "judge_options": given or None}


@dataclass(frozen=True, kw_only=True)
class Trying:
    """What is tried, and with which prompts, instead of what the file says."""

    attack: Annotated[list[str] | None, option("NAME", "Only this attack. May be repeated.")] = None
    over_refusal: Annotated[Path | None, option("FILE", "Safe prompts, one a line (default: of XSTest).")] = None
    prefilter: Annotated[
        str | None, option("LIST", "Leave out training prompts that do not begin as their side says (' I').")
    ] = None

    @property
    def instead(self) -> dict[str, Any]:
        safe = None if self.over_refusal is None else str(self.over_refusal)
        tokens = None if self.prefilter is None else self.prefilter.split(",")
        return {"attacks": self.attack or None, "over_refusal": safe, "prefilter": tokens}


def robustness(
    asked: Printing,
    judging: Judging,
    trying: Trying,
    behaviour: Annotated[str, argument("BEHAVIOUR", "A behaviour file (YAML), or a shipped organism.")],
    out: Annotated[Path | None, option("DIR", "Folder of the report (default: runs/robustness-NAME).")] = None,
    model: Annotated[
        str | None, option("MODEL", "Test this model, not the file's (such as the base, as a control).")
    ] = None,
    control: Annotated[str | None, option("MODEL", "A model without the behaviour, set beside it.")] = None,
    defence: Annotated[
        list[str] | None, option("MODEL", "A defended model, or its adapter's folder, beside it. May be repeated.")
    ] = None,
    set: Set = None,
    trust_remote_code: Trust = False,
    fresh: Annotated[bool, flag("Forget what an earlier run left in the folder.")] = False,
) -> None:
    """Attack a behaviour, beside controls, and write a report.

    The behaviour is prompts that should show it, prompts that should not, and a judge. Its direction is found on the
    training prompts; ablation at all sites and at one layer, subtraction, subspaces, prefill and a few steps of
    fine-tuning are tried on the held-out ones, each beside random directions and shuffled labels. Costs: KL,
    perplexity, tasks, refusals of safe prompts. The folder gets report.html, report.md and results.json. Interrupted,
    the same command goes on where it stopped. Nothing is exported; responses are kept with --set keep_texts=true alone.

    Example: monosem robustness behaviour.yaml --out runs/refusal
    """
    from .. import robustness as room

    given: dict[str, Any] = {"model": model, "control": control, "defences": defence or None}
    given |= judging.instead | trying.instead
    instead = {name: value for name, value in given.items() if value is not None} | fields(set)
    config = room.RobustnessConfig.load(behaviour, **instead)
    folder = out or Path("runs") / f"robustness-{config.name}"
    with resumable(folder):
        options: dict[str, Any] = {"quiet": asked.silent, "fresh": fresh, "trust_remote_code": trust_remote_code}
        done = room.assess(config, folder=folder, say=None if asked.silent else line, **options)
    if asked.json:
        as_json({"verdicts": done.verdicts, "arms": done.table, "config": done.config})
    elif asked.quiet:
        line(done.html)
    else:
        frame(done.verdicts[["model", "attack", "strength", "p_none", "words"]], "verdicts")
