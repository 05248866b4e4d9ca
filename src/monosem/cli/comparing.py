"""`monosem compare-methods`: methods of finding and steering a concept, side by side."""

from pathlib import Path
from typing import Annotated, Any

from ..terminal import notice
from .application import resumable
from .options import (
    DICTIONARIES,
    MODELS,
    Device,
    Dtype,
    Layers,
    Printing,
    Set,
    Trust,
    argument,
    fields,
    flag,
    layer_numbers,
    names,
    option,
)
from .output import as_json, frame, line

SHOWN = ["method", "auroc", "auroc_low", "auroc_high", "shift", "shift_low", "shift_high", "score"]


def compare_methods(
    concept: Annotated[
        list[str], argument("CONCEPT...", "Concept files (YAML), folders of them, or shipped names (list concepts).")
    ],
    printing: Printing,
    out: Annotated[Path, option("DIR", "Folder of the report and of what is done.")],
    model: Annotated[str, option("MODEL", f"The model: {MODELS}.")] = "smollm2",
    dictionary: Annotated[str | None, option("NAME", f"Its best latent takes part: {DICTIONARIES}.")] = None,
    methods: Annotated[str | None, option("NAMES", "Such as dim,logistic,prompt (a wrong one lists all).")] = None,
    layers: Layers = None,
    set: Set = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    fresh: Annotated[bool, flag("Forget what an earlier run left in the folder.")] = False,
) -> None:
    """Compare methods of finding a concept.

    Every method detects the concept on held-out texts (AUROC), and steers towards it at strengths that change the model
    by the same KL; beside prompting, a bag of words, a random direction and shuffled labels. DIR gets report.html,
    report.md, results.json and the directions. Interrupted, the same command goes on where it stopped; concepts may be
    added to the same folder. docs/comparison.md says what a concept file holds and what each number means.

    Example: monosem compare-methods french sentiment --dictionary smollm2/resid_post.15 --out runs/methods
    """
    from ..dictionaries import one_site
    from ..files import check_writable
    from ..methods import compare_methods as measure
    from ..methods.concept import concepts_of
    from ..methods.config import MethodsConfig
    from ..models import load_model

    concepts = concepts_of(concept)  # what is wrong with a file is said before anything is loaded
    settings: dict[str, Any] = fields(set)
    settings |= {} if methods is None else {"methods": names(methods)}
    MethodsConfig.parse({"concepts": [one.name for one in concepts], **settings})
    check_writable(out / "report.html")
    lm = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, quiet=printing.silent)
    sae = None if dictionary is None else one_site(dictionary).to(lm.device)
    if (chosen := layer_numbers(layers, lm.cfg.n_layers)) is not None:
        settings["layers"] = chosen
    with resumable(out):
        done = measure(lm, concepts, folder=out, dictionary=sae, settings=settings, fresh=fresh, quiet=printing.silent)
    if printing.json:
        as_json(done.results)
    elif printing.quiet:
        line(done.html)
    else:
        count = len(done.results["concepts"])
        frame(done.table[SHOWN], f"means over {count} concept{'s' * (count != 1)}")
        for name, judge in done.blind_judges.items():
            notice(
                f"{name}: its judge cannot be shown to tell the test texts apart (AUROC {judge['auroc']:.2f} "
                f"[{judge['low']:.2f}, {judge['high']:.2f}]), so shifts and scores say nothing there: give more texts "
                "or another scorer"
            )
        notice(f"report: {done.html}")
