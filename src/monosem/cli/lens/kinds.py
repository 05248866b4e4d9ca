"""What `monosem lens train --kind` makes beside a tuned lens."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, check_name

if TYPE_CHECKING:
    from ...lenses.fitted import Fitted
    from ...models import Model

Windows = list[list[int]]


def _jacobian(model: "Model", texts: Windows, out: Path, options: dict[str, Any]) -> "Fitted":
    from ...lenses import JacobianLens

    return JacobianLens.fit(model, texts, folder=out, **options)


def _future(model: "Model", texts: Windows, out: Path, options: dict[str, Any]) -> "Fitted":
    from ...lenses import FutureLens

    return FutureLens.fit(model, texts, **options)


def _head(model: "Model", texts: Windows, out: Path, options: dict[str, Any]) -> "Fitted":
    from ...lenses import HeadLens, copying_effects

    heads, quiet = options.pop("heads", None), options.pop("quiet")
    kind, prompts = options.pop("copying", "token"), options.pop("prompts", 32)
    effects = copying_effects(model, kind, prompts, texts=texts, quiet=quiet)
    return HeadLens.of(model, effects, n=heads, **options)


def _soft_prompt(model: "Model", texts: Windows, out: Path, options: dict[str, Any]) -> "Fitted":
    from ...lenses import SoftPrompt

    return SoftPrompt.fit(model, texts, options.pop("layer", model.cfg.n_layers // 2), **options)


# the function, its settings (of --set), and the windows of text that it takes: how many, of how many tokens
Make = Callable[["Model", Windows, Path, dict[str, Any]], "Fitted"]
KINDS: dict[str, tuple[Make, tuple[str, ...], tuple[int, int]]] = {
    "jacobian": (_jacobian, ("layers", "skip_first", "skip_last", "probes", "batch_size"), (100, 128)),
    "future": (_future, ("layers", "offsets", "ridge", "skip_first", "batch_size"), (200, 256)),
    "head": (_head, ("copying", "prompts", "heads", "fold"), (20, 128)),
    "soft-prompt": (
        _soft_prompt,
        ("layer", "target_layer", "text", "offsets", "steps", "batch_size", "lr", "per_text", "skip_first"),
        (50, 128),
    ),
}
TEXT = ("windows", "length")


def settings_of(kind: str, given: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """The settings of a kind, and how many windows of how many tokens it reads.

    Raises:
        UnknownName: no such kind or setting. BadInput: a number of windows or tokens that is none.
    """
    check_name("kind of lens", kind, ["tuned", *KINDS])
    _, names, (windows, length) = KINDS[kind]
    for name in given:
        check_name(f"setting of a {kind} lens", name, [*names, *TEXT])
    sizes = given.get("windows", windows), given.get("length", length)
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 2 for size in sizes):
        raise BadInput(f"windows and length are whole numbers of 2 or more, not {sizes[0]!r} and {sizes[1]!r}")
    return {name: value for name, value in given.items() if name in names}, *sizes


def made(kind: str, model: "Model", texts: Windows, out: Path, options: dict[str, Any]) -> "Fitted":
    """The lens, saved in `out/lens`."""
    lens = KINDS[kind][0](model, texts, out, options)
    lens.save(out / "lens")
    return lens
