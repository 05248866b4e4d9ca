"""A robustness report from its config to its folder: part by part, each kept as soon as it is done."""

import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import BadInput, Mismatch, require
from ..files import check_writable
from ..jobs import claim, module_fingerprint, read_part, write_part
from ..judges import Judge
from ..judges import judge as judge_of
from ..models import Model
from ..models.transformerlens.text import single_token
from ..progress import Meter
from . import report
from .attacks import chosen
from .config import CONTROL, MODEL, ROLES, RobustnessConfig, defence
from .context import Context, Say
from .costs import over_refusal_prompts
from .measured import Part, Parts, parts
from .result import Robustness


def assess(
    behaviour: RobustnessConfig | str | os.PathLike[str] | dict[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    model: Model | None = None,
    control: Model | None = None,
    defences: Sequence[Model] = (),
    judge: Judge | None = None,
    say: Say | None = print,
    quiet: bool = False,
    fresh: bool = False,
    trust_remote_code: bool = False,
) -> Robustness:
    """How far a behaviour survives attacks, and what these and the defences cost, measured on held-out prompts.

    Everything happens in memory and is undone; no changed weights are written. Each part is saved when it is done and
    taken from there when the same report is run again in the same folder.

    Args:
        behaviour: a config, a behaviour file (YAML), the name of an organism, or a dict.
        folder: where the report goes; default `runs/robustness-NAME`.
        model, control, defences: already loaded ones, instead of those that the config names. judge: likewise.
        say: called with each finding; None for silence. quiet: no progress.
        fresh: forget earlier parts in the folder.

    Raises:
        BadInput, BadFile, UnknownName: the config is wrong (the message names the field), or the folder not writable.
        Mismatch: the folder holds a report with other settings or models.
        MissingExtra: plotly is not there (checked before anything is computed).
    """
    require("plotly", "plots")
    config = RobustnessConfig.load(behaviour)
    attacks = chosen(config.attacks)
    home = Path(folder or Path("runs") / f"robustness-{config.name}")
    check_writable(home / "report.html")
    over_refusal_prompts(config.over_refusal)
    tell: Say = say or (lambda line: None)
    load: dict[str, Any] = {"dtype": config.dtype, "trust_remote_code": trust_remote_code, "quiet": quiet}
    models = _models(config, [model, control, *defences], load)
    by = judge_of(config.judge if judge is None else judge, **({} if judge is not None else config.judge_options))
    origin = provenance(config, models) | {"judge": by.name}
    with _claimed(home, config, origin, fresh):
        config.write(home / "config.yaml")
        every = parts(attacks)
        waiting = [(where, part) for where in models for part in every if not _path(home, where, part).exists()]
        contexts = {where: Context(config, one, tell, by, models[MODEL]) for where, one in models.items()}
        total = sum(part.count(contexts[where]) for where, part in waiting)
        with Meter("robustness", total=total, unit="arm", quiet=quiet) as meter:
            made = {}
            for where, context in contexts.items():
                context.meter = meter
                made[where] = dict(_made(context, every, home, where))
        results = {"config": config.model_dump(mode="json"), "provenance": origin, "judge": report.judge_facts(by)}
        results["parts"] = made
        report.write(results, home)
    done = Robustness(results, config, home)
    for line in done.findings:
        tell(line)
    tell(f"report: {home / 'report.html'}")
    return done


def _models(config: RobustnessConfig, given: list[Model | None], load: dict[str, Any]) -> dict[str, Model]:
    """By place in the report: those given, the others loaded. Raises as `load_model` and `_check_prompts`."""
    from ..models import load_model

    places = [MODEL, CONTROL, *(defence(number) for number in range(1, len(given) - 1))]
    models = {where: one for where, one in zip(places, given) if one is not None}
    models |= {where: load_model(name, **load) for where, name in config.models.items() if where not in models}
    for where, one in models.items():
        _check_prompts(config, one, where)
    return {where: models[where] for where in sorted(models, key=_order)}


def _check_prompts(config: RobustnessConfig, model: Model, where: str) -> None:
    """Raises `BadInput` where a model cannot be asked a prompt of the config, or splits a token of its prefilter."""
    from ..models.loading.checkpoint import hushed

    template = getattr(model.tokenizer, "chat_template", None)
    if config.chat and not template:
        raise BadInput(f"{where}: {model.name} has no chat template; --set chat=false gives it the prompts as they are")
    if high := [layer for layer in config.span_layers or () if layer >= model.cfg.n_layers]:
        raise BadInput(f"span_layers: {where}: {model.name} has layers 0 to {model.cfg.n_layers - 1}, and no {high[0]}")
    for token in config.prefilter:
        single_token(model, token)
    longest = max((config.prefill, config.neutral_prefill), key=len)
    for role in ROLES:
        for number, prompt in enumerate(config.prompts.get(role, ()), 1):
            asked = model.chat(prompt) if config.chat else prompt
            with hushed():  # transformers warns of long texts
                n = len(model.encoded(asked + longest)) + config.max_new_tokens
            if n > model.cfg.n_ctx:
                raise BadInput(
                    f"prompts.{role}: prompt {number} with prefill and {config.max_new_tokens} new tokens has {n} "
                    f"tokens, and {model.name} has a context of {model.cfg.n_ctx}; shorten it"
                )


def _order(where: str) -> tuple[int, int, str]:
    """The model, the control, the defended ones by number."""
    return [MODEL, CONTROL, where].index(where), len(where), where


def provenance(config: RobustnessConfig, models: dict[str, Model]) -> dict[str, Any]:
    """What made the numbers: versions and fingerprints."""
    packages = {name: version(name) for name in ("torch", "transformers")}
    found = {"monosem": __version__, "python": platform.python_version(), **packages}
    for where, model in models.items():
        found |= {where: model.name, f"{where}_weights": module_fingerprint(model.hf)}
    first = next(iter(models.values()))
    return found | {"dtype": str(first.dtype).removeprefix("torch."), "device": str(first.device)}


def _claimed(home: Path, config: RobustnessConfig, origin: dict[str, Any], fresh: bool) -> ExitStack:
    held = ExitStack()
    try:
        held.enter_context(claim(home, config, work="parts/**/*.json", made_with=origin, fresh=fresh))
    except Mismatch as error:
        raise Mismatch(f"{error}, or start it afresh (fresh=True, --fresh)") from error
    return held


def _made(context: Context, every: list[Part], home: Path, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, data) of each part: from its file, or measured now."""
    earlier: Parts = {}
    for part in every:
        path = _path(home, where, part)
        if path.exists():
            data = read_part(path)
        else:
            began = time.monotonic()
            context.say(f"{where}: {part.title}")
            data = storable(part.make(context, earlier) | {"seconds": 0.0})
            data["seconds"] = round(time.monotonic() - began, 1)
            write_part(path, data)
        earlier[part.name] = data
        yield part.name, data


def _path(home: Path, where: str, part: Part) -> Path:
    return home / "parts" / where / f"{part.name}.json"


def storable(value: Any) -> Any:
    """As JSON holds it, so that a resumed report has the same values: tuples are lists, NaN is None."""
    if isinstance(value, dict):
        return {str(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
