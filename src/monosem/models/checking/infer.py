"""A row of the family table for an architecture that has none, found by what its modules do in one forward pass.

transformers names the classes of blocks and attention modules (`_can_record_outputs`); who reads and writes what is
seen in a trace: the norm whose output attention reads is ln1, the one that reads attention's output is a post-norm,
the linear layer whose output is the module's output is the output projection, and so on. Nothing is taken on trust:
the row is used only if the identities of `verify.py` hold on the model itself, and the user is told.
"""

import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache, partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...errors import UnknownName, cause
from ..language import is_multimodal, language_model, refuse_compiled, text_config
from ..model import Model
from ..places.families import BranchRow, Family
from ..places.loops import check_listed
from ..places.mixers import module_at
from ..places.table import BY_TYPE, family_of, refuse_type
from .anatomy import Found, branches_of, choices, merged
from .ends import ends_of
from .finding import NotFound, recorded_class
from .prefix import Shortened
from .tracing import Call
from .verify import Verification, beginning, quick, sums, uses

_HOW = "docs/your-model.md shows how to write a row, for Model(hf, family=Family(...))"
# the beginning of a site's name -> what it means that an identity fails there
_MEANING = {
    "resid_pre": "what enters its first block is not what was found",
    "resid_": "what its branches write does not add up to its stream (is the stream itself scaled or normed?)",
    "final": "what follows its last block is not what was found",
    "": "what is inside its blocks is not what was found",
}


class InferredFamily(UserWarning):
    """A model type without a row is read through a row that was inferred from its modules."""


def row_of(hf: PreTrainedModel) -> Family:
    """The table's row for its language model, else an inferred one.

    What a row says of the first block is checked, because configs have switches that no row knows. A multimodal model
    may run its language model in another way than the same language model alone (other masks, other positions, logits
    without the scale after them), and an adapter may change more than layers, so all identities are checked on them.

    Raises:
        UnknownName: as `infer`, or an identity fails on a multimodal model or one with an adapter.
    """
    refuse_compiled(hf)
    refuse_type(text_config(hf))
    if hf.config.is_encoder_decoder:
        return family_of(hf.config)
    row = BY_TYPE.get(text_config(hf).model_type)
    if row is None:
        return infer(hf)
    if row.order is None:
        check_listed(text_config(hf), len(module_at(language_model(hf), row.layers) or ()), row.name)
    adapted = any(hasattr(module, "base_layer") for module in hf.modules())
    if not (is_multimodal(hf) or adapted):
        if failure := _failure(partial(Model, hf, family=row, name=row.name), beginning):
            raise UnknownName(
                f"this model of type {row.name!r} is not as its family row says: {failure.reason}; does its config ask "
                f"for something rare? {_HOW}"
            )
        return row
    for other in (replace(row, logit_steps=()), row):
        if not (failure := _failure(partial(Model, hf, family=other, name=other.name))):
            return other
    how = "with its adapter" if adapted else "on text alone"
    raise UnknownName(f"the language model of {type(hf).__name__} ({row.name}) cannot be read {how}: {failure.reason}")


def infer(hf: PreTrainedModel) -> Family:
    """A verified row for this model, with an `InferredFamily` warning that shows it.

    Raises:
        UnknownName: what could not be found, or which identity failed for the best row.
    """
    refuse_compiled(hf)
    kind = text_config(hf).model_type
    try:
        layers = _layers(hf)
        short = Shortened(hf, layers)
        calls = short.trace()
        with short.within():
            row, branches = _outline(hf, layers, calls)
    except NotFound as error:
        raise UnknownName(
            f"no family row for model type {kind!r}, and none could be inferred: {error}; {_HOW}"
        ) from error
    tried: list[tuple[tuple[int, ...], Failure]] = []
    for rows, level in choices(branches):
        if any(failure.repeats(level, earlier, branches) for earlier, failure in tried):
            continue
        candidate = replace(row, branches=rows)
        model = cache(partial(Model, hf, family=candidate, name=candidate.name))
        with short.within():
            failure = _failure(model)
        if not (failure := failure or _failure(partial(Model, hf, family=candidate, name=candidate.name), sums)):
            because = tried[0][1].reason if _wholes(rows) > _wholes(choices(branches)[0][0]) else ""
            with short.within():
                return _announced(_with_uses(model, candidate), because)
        tried.append((level, failure))
    best = replace(row, branches=choices(branches)[0][0])
    reason = tried[-1][1].reason if tried[-1][1].sites else tried[0][1].reason
    sites = min((failure.sites for _, failure in tried), key=len)
    meaning = next(words for start, words in _MEANING.items() if any(site.startswith(start) for site in sites or [""]))
    raise UnknownName(
        f"no family row for model type {kind!r}, and the inferred one fails: {meaning}, {reason}; {_HOW}; tried: "
        f"{shown(best)}"
    )


def _wholes(rows: tuple[BranchRow, ...]) -> int:
    """How many mixers are read as a whole."""
    return sum(mixer.kind == "other" for row in rows for mixer in row.mixers)


def _with_uses(model: Callable[[], Model], row: Family) -> Family:
    """The row with what does not hold on this model: generation with its cache, and padding before a prompt.

    Raises:
        UnknownName: padding after a text changes the text's own numbers.
    """
    failed = _failure(model, uses).identities
    if any(identity.startswith("right padded") for identity in failed):
        raise UnknownName(
            f"model type {row.name!r}: a text gives other logits beside a longer one (padding is read, or the texts of "
            "a batch are mixed)"
        )
    left, cache = (any(identity.startswith(what) for identity in failed) for what in ("left padded", "cached"))
    return replace(row, padded=row.padded and not left, cached=row.cached and not cache)


def _announced(row: Family, because: str) -> Family:
    lines = [f"model type {row.name!r} has no family row; reading it through an inferred one, which passed the "]
    lines += [f"identities: {shown(row)}. `monosem verify` prints the errors"]
    lines += [f". Less was read than was found, because of {because}"] if because else []
    lines += [] if row.cached else [". Its cache changes its logits: every new token is a pass over all tokens"]
    warnings.warn("".join(lines), InferredFamily, stacklevel=4)
    return row


def shown(row: Any) -> str:
    """What a row, a branch or a mixer says beyond the defaults, as it is written in the table."""
    if isinstance(row, tuple):
        return f"({', '.join(map(shown, row))}{',' * (len(row) == 1)})"
    if not is_dataclass(row):
        return repr(row)
    said = []
    for field in fields(row):
        value = getattr(row, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default:
            said.append(f"{field.name}={shown(value)}")
    return f"{type(row).__name__}({', '.join(said)})"


@dataclass(frozen=True)
class Failure:
    """Why a row does not read a model.

    Attributes:
        sites: names of the sites at which identities failed; none where the model cannot be read at all.
        identities: which ones failed.
    """

    reason: str = ""
    sites: frozenset[str] = frozenset()
    identities: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reason)

    def repeats(self, level: tuple[int, ...], earlier: tuple[int, ...], branches: list[list[Found]]) -> bool:
        """Whether a row must fail as an earlier one did: no branch at whose sites identities failed is weaker now."""
        at_fault = [n for n, forms in enumerate(branches) if self.sites & _inner_sites(forms, earlier[n])]
        return bool(at_fault) and all(level[n] == earlier[n] for n in at_fault)


def _inner_sites(forms: list[Found], level: int) -> set[str]:
    """Names of the sites inside a branch."""
    mixers = [one.mixers[min(level, len(one.mixers) - 1)] for one in forms]
    return {name for mixer in mixers for name, _ in mixer.inner(forms[0].name)}


def _failure(model: Callable[[], Model], check: Callable[[Model], Verification] = quick) -> Failure:
    try:
        rows = check(model()).rows
    except (UnknownName, AttributeError, RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        return Failure(f"it cannot be read ({cause(error)})")
    failed = [row for row in rows if not row["ok"]]
    bad = [f"'{r['identity']}' at {r['site']} (relative error {r['error']:.1g})" for r in failed]
    reason = f"identity {', '.join(bad[:4])}{' and more' if len(bad) > 4 else ''}" if bad else ""
    return Failure(reason, frozenset(str(r["site"]) for r in failed), tuple(str(r["identity"]) for r in failed))


def _outline(hf: PreTrainedModel, layers: str, calls: list[Call]) -> tuple[Family, list[list[Found]]]:
    """The row without its branches, and the branches that blocks have."""
    config = text_config(hf)
    modules = list(language_model(hf).get_submodule(layers).children())
    blocks = [c for c in calls if c.module in set(modules)]
    if len(blocks) != config.num_hidden_layers:
        how = "are called again and again (looped)" if len(blocks) > len(modules) else "were called"
        raise NotFound(f"one call of each block: {len(blocks)} calls, and {len(modules)} blocks of {layers} {how}")
    row = Family(config.model_type, (config.model_type,), layers=layers)
    row = replace(row, **ends_of(hf, calls, blocks))
    return row, merged([c.module for c in blocks], [branches_of(hf, calls, block) for block in blocks])


def _layers(hf: PreTrainedModel) -> str:
    """The list of blocks, as long as the config says; of several, of the class whose outputs transformers records."""
    recorded, layers = recorded_class(hf, "hidden_states"), getattr(text_config(hf), "num_hidden_layers", 0)
    lists = [
        (path, module)
        for path, module in language_model(hf).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers > 0
    ]
    known = [path for path, module in lists if recorded is not None and isinstance(module[0], recorded)]
    if not lists:
        raise NotFound("no list of blocks as long as config.num_hidden_layers")
    return (known or [path for path, _ in lists])[0]
