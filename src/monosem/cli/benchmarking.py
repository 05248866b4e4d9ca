"""`monosem benchmark`: what dictionaries are good for, beside baselines, in one report."""

from pathlib import Path
from typing import Annotated, Any

from ..errors import BadInput
from ..terminal import notice
from .application import resumable
from .options import DICTIONARIES, MODELS, Device, Dtype, Printing, Set, Trust, argument, fields, flag, names, option
from .output import as_json, frame, line


def benchmark(
    dictionary: Annotated[list[str], argument("DICTIONARY...", f"One or several of one model: {DICTIONARIES}.")],
    printing: Printing,
    out: Annotated[Path, option("DIR", "Folder of the report and of what is done.")],
    tasks: Annotated[
        str | None, option("NAMES", "Such as core,sparse_probing (default: all; monosem list benchmarks).")
    ] = None,
    set: Set = None,
    model: Annotated[str | None, option("MODEL", f"Another model than the dictionaries' own: {MODELS}.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    fresh: Annotated[bool, flag("Forget what an earlier run left in the folder.")] = False,
) -> None:
    """Measure what dictionaries are good for.

    Each task measures every dictionary, a random one of the same shape and the activation's raw dimensions. DIR gets
    report.html, report.md and results.json. Interrupted, the same command goes on where it stopped; further
    dictionaries and tasks may be added to the same folder. docs/evaluation.md says what each number means.

    Example: monosem benchmark smollm2/resid_post.15 --tasks core,sparse_probing --out runs/benchmarks

    Example: monosem benchmark runs/a/dictionary runs/b/dictionary --set sparse_probing.most=200 --out runs/benchmarks
    """
    from ..benchmarks import benchmark as measure
    from ..benchmarks.job import task_configs
    from ..dictionaries import one_site
    from ..files import check_writable
    from ..models import load_model

    settings: dict[str, dict[str, Any]] = {}
    for key, value in fields(set).items():
        task, dot, field = key.partition(".")
        if not dot:
            raise BadInput(f"--set {key}: write TASK.FIELD=VALUE, such as core.tokens=50000")
        settings.setdefault(task, {})[field] = value
    chosen = None if tasks is None else names(tasks)
    task_configs(chosen, settings)  # what is wrong is said before anything is loaded
    check_writable(out / "report.html")
    loaded = {name: one_site(name) for name in dictionary}
    named = model or next((one.model_name for one in loaded.values() if one.model_name), None)
    if named is None:
        raise BadInput(f"{dictionary[0]} does not say which model it was made for; give --model MODEL")
    lm = load_model(named, device=device, dtype=dtype, trust_remote_code=trust_remote_code, quiet=printing.silent)
    for one in loaded.values():
        one.to(lm.device)
    with resumable(out):
        done = measure(lm, loaded, folder=out, tasks=chosen, settings=settings, fresh=fresh, quiet=printing.silent)
    if printing.json:
        as_json(done.results)
    elif printing.quiet:
        line(done.html)
    else:
        frame(done.table)
        notice(f"report: {done.html}")
