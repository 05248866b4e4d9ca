"""`monosem explore`: latents, prompts and steering in the browser."""

from pathlib import Path
from typing import Annotated

from .options import DICTIONARIES, MODELS, Quiet, argument, flag, option


def explore(
    dictionaries: Annotated[
        list[str] | None, argument("[DICTIONARY...]", f"Shown first: {DICTIONARIES}. The shipped ones follow.")
    ] = None,
    model: Annotated[str | None, option("MODEL", f"Another model than the dictionaries' own: {MODELS}.")] = None,
    port: Annotated[
        int | None, option("N", "Default: the first free one from 8420 on; 0: any.", min=0, max=65535)
    ] = None,
    notes: Annotated[
        Path | None, option("FILE", "Where stars, lists and notes are kept (default: your data folder).")
    ] = None,
    reports: Annotated[list[Path] | None, option("DIR", "A folder with reports. May be repeated.")] = None,
    direction: Annotated[
        list[Path] | None, option("PATH", "A file of directions, or a folder of them, to steer with. May be repeated.")
    ] = None,
    sweep: Annotated[
        list[Path] | None, option("DIR", "A folder that `monosem sweep` wrote, to look through. May be repeated.")
    ] = None,
    dashboards: Annotated[
        list[Path] | None, option("PATH", "Files of sae-dashboard, sae_vis or Neuronpedia's export. May be repeated.")
    ] = None,
    index: Annotated[
        list[Path] | None,
        option("FILE", "A latent index to show in place of the one beside its dictionary. May be repeated."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        option("PATH", "Text of which the browser may have an index made: a file or folder. May be repeated."),
    ] = None,
    browser: Annotated[
        bool, flag("Open it in the browser, or print the address alone.", "--browser/--no-browser")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """See in the browser what every latent does.

    Prints an address on this machine and opens it. Pages of latents need no model; texts, steering, lenses, patching
    and graphs load it when they are first asked for. A dictionary without an index shows what its weights say, until
    one is made there, of a text that you choose. The address holds a token: nobody without it can use the server.
    Ctrl-C ends it.

    Example: monosem explore smollm2/resid_post.15
    """
    from ..explorer import serve

    serve(
        dictionaries or (),
        model=model,
        port=port,
        notes=notes,
        reports=reports or (),
        directions=direction or (),
        sweeps=sweep or (),
        dashboards=dashboards or (),
        indexes=index or (),
        texts=text or (),
        open_browser=browser,
        quiet=quiet,
    )
