"""A row of the family table for an architecture that has none, found by what its modules do in one forward pass.

transformers names the classes of blocks and attention modules (`_can_record_outputs`); who reads and writes what is
seen in a trace: the norm whose output attention reads is ln1, the one that reads attention's output is a post-norm,
the linear layer whose output is the module's output is the output projection, and so on. Nothing is taken on trust:
the row is used only if the identities of `verify.py` hold on the model itself, and the user is told.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import UnknownName, cause
from ..language import is_multimodal, language_model, text_config
from ..model import Model
from ..native import device_of, refuse_compiled
from ..places.families import BY_TYPE, LOGIT_STEPS, Family, attn, mlp
from ..sizes import widths
from ..turns import turn
from .tracing import Call, is_linear, same, trace
from .verify import verify

LOUD = 300.0  # logits at which a step after the unembedding is looked at: ten times a usual soft cap
_HOW = "add a row to monosem/models/places/families.py, or pass family=Family(...) to Model"


class InferredFamily(UserWarning):
    """A model type without a row is read through a row that was inferred from its modules."""


def row_of(hf: PreTrainedModel) -> Family:
    """The table's row for its language model, else an inferred one.

    A multimodal model may run its language model in another way than the same language model alone (other masks, other
    positions, logits without the scale after them), and an adapter may change more than layers, so the identities are
    checked on them.

    Raises:
        UnknownName: as `infer`, or an identity fails on a multimodal model or one with an adapter.
    """
    row = BY_TYPE.get(text_config(hf).model_type)
    if row is None:
        return infer(hf)
    adapted = any(hasattr(module, "base_layer") for module in hf.modules())
    if not (is_multimodal(hf) or adapted):
        return row
    for other in (replace(row, logit_steps=()), row):
        if not (failure := _failed_identity(hf, other)):
            return other
    how = "with its adapter" if adapted else "on text alone"
    raise UnknownName(f"the language model of {type(hf).__name__} ({row.name}) cannot be read {how}: {failure}")


def infer(hf: PreTrainedModel) -> Family:
    """A verified row for this model, with an `InferredFamily` warning that shows it.

    Raises:
        UnknownName: what could not be found, or which identity failed for the best row.
    """
    refuse_compiled(hf)
    kind, failure = text_config(hf).model_type, ""
    try:
        candidates = list(_rows(hf))
    except _NotFound as error:
        raise UnknownName(
            f"no family row for model type {kind!r}, and none could be inferred: {error}; {_HOW}"
        ) from error
    for row in candidates:
        failure = _failed_identity(hf, row)
        if not failure:
            warnings.warn(
                f"model type {kind!r} has no family row; reading it through an inferred one, which passed the "
                f"identities: {shown(row)}. `monosem verify` prints the errors",
                InferredFamily,
                stacklevel=3,
            )
            return row
    raise UnknownName(
        f"no family row for model type {kind!r}, and the inferred one ({shown(row)}) fails: {failure}; {_HOW}"
    )


def shown(row: Family) -> str:
    """What a row says beyond the defaults, as it is written in the table."""
    plain = Family("", ())
    said = {k: v for k, v in vars(row).items() if v != getattr(plain, k) and k not in ("name", "model_types")}
    return f"Family({row.name!r}, {row.model_types!r}" + "".join(f", {k}={v!r}" for k, v in said.items()) + ")"


def _failed_identity(hf: PreTrainedModel, row: Family) -> str:
    try:
        rows = verify(Model(hf, family=row, name=row.name), quick=True).rows
    except (UnknownName, AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f"it cannot be read ({cause(error)})"
    bad = [f"'{r['identity']}' at {r['site']} (relative error {r['error']:.1g})" for r in rows if not r["ok"]]
    return f"identity {', '.join(bad[:4])}{' and more' if len(bad) > 4 else ''}" if bad else ""


class _NotFound(Exception):
    """Which part was not found."""


def _rows(hf: PreTrainedModel) -> Iterator[Family]:
    """Rows that the trace allows: two where q, k and v are fused and both layouts have the right size."""
    config = text_config(hf)
    calls = trace(hf, torch.arange(6, device=device_of(hf))[None])
    layers = _layers(hf)
    modules = {*language_model(hf).get_submodule(layers).children()}
    blocks = [c for c in calls if c.module in modules]
    if len(blocks) < config.num_hidden_layers:
        raise _NotFound(f"only {len(blocks)} of {config.num_hidden_layers} blocks of {layers} were called")
    row = Family(config.model_type, (config.model_type,), layers=layers)
    row = replace(row, **_ends(hf, calls, blocks))
    attention, rest = _block(hf, calls, blocks[0])
    rest = _mlps(calls, blocks[1:], rest["path"]) | rest
    attention["clip"] = "clip_qkv" if hasattr(config, "clip_qkv") else None
    yield replace(row, branches=(attn(**attention), mlp(**rest)))
    if "qkv" in attention:
        yield replace(row, branches=(attn(**attention | {"fused": "interleaved"}), mlp(**rest)))


def _layers(hf: PreTrainedModel) -> str:
    """The list of blocks: of the class that transformers records hidden states of, as long as the config says."""
    recorded, layers = _recorded(hf, "hidden_states"), getattr(text_config(hf), "num_hidden_layers", 0)
    for path, module in language_model(hf).named_modules():
        whole = isinstance(module, nn.ModuleList) and len(module) == layers > 0
        if whole and (recorded is None or isinstance(module[0], recorded)):
            return path
    raise _NotFound("no list of blocks as long as config.num_hidden_layers")


def _recorded(hf: PreTrainedModel, what: str) -> type | None:
    holders = (language_model(hf),) if is_multimodal(hf) else (hf, language_model(hf))
    table: dict[str, Any] = next((t for one in holders if (t := getattr(one, "_can_record_outputs", None))), {})
    recorder = table.get(what)
    recorder = recorder[0] if isinstance(recorder, list | tuple) and recorder else recorder
    module = getattr(recorder, "target_class", recorder)
    return module if isinstance(module, type) else None


def _first(calls: Iterable[Call], what: str) -> Call:
    for call in calls:
        return call
    raise _NotFound(what)


# ---------------------------------------------------------------------- before and after the blocks
def _ends(hf: PreTrainedModel, calls: list[Call], blocks: list[Call]) -> dict[str, Any]:
    embed = _first((c for c in calls if c.module is hf.get_input_embeddings()), "the token embedding was not called")
    head = _first((c for c in calls if c.module is hf.get_output_embeddings()), "the unembedding was not called")
    first, last = blocks[0].read, blocks[-1].wrote
    norms = (c for c in calls if same(c.read, last) and same(c.wrote, head.read) and not list(c.module.children()))
    norm = _first(norms, "no norm between the last block and the unembedding")
    logits = _first((c for c in calls if c.module is hf), "the model returns no logits").wrote
    ends = {
        "embed": _path(hf, embed),
        "final_norm": _path(hf, norm),
        "logit_steps": _logit_step(hf, head.wrote, logits),
    }
    if same(embed.wrote, first):
        return ends
    for c in calls:
        other = isinstance(c.module, nn.Embedding) and c is not embed
        if other and same((embed.wrote + c.wrote).expand_as(first), first):
            return ends | {"positions": _path(hf, c)}
    scale = _ratio(first, embed.wrote)
    attribute = None if scale is None else _constant(hf, scale, first)
    if attribute is None:
        raise _NotFound("what enters the first block is not the token embedding, with or without positions or a scale")
    return ends | {"embed_scale": attribute}


def _path(hf: PreTrainedModel, call: Call) -> str:
    """A module's path in the language model."""
    for path, module in language_model(hf).named_modules():
        if module is call.module:
            return path
    raise _NotFound(f"{call.path} lies outside the language model")


def _logit_step(hf: PreTrainedModel, raw: Tensor, logits: Tensor) -> tuple[tuple[str, str], ...]:
    """Seen at logits so loud that a step which bends them does: near zero every soft cap is the identity."""
    if same(raw, logits) and same(*_loud(hf)):
        return ()
    loud, stepped = _loud(hf)
    for step, function in LOGIT_STEPS.items():
        if name := _attribute(hf, lambda value, f=function: _distance(f(loud, value), stepped), _limit(raw)):  # type: ignore[misc]
            return ((step, name),)
    raise _NotFound("what the model does to the logits after the unembedding")


def _loud(hf: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The unembedding's output, made as large as `LOUD`, and the model's logits then."""
    seen: list[Tensor] = []

    def louder(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(output * (LOUD / output.abs().max().clamp(min=1e-30)))
        return seen[-1]

    head = hf.get_output_embeddings()
    assert isinstance(head, nn.Module)
    with turn(hf), torch.no_grad():
        hook = head.register_forward_hook(louder)
        try:
            logits = hf(input_ids=torch.arange(6, device=device_of(hf))[None], use_cache=False).logits
        finally:
            hook.remove()
    return seen[-1], logits


def _constant(hf: PreTrainedModel, found: float, of: Tensor) -> str | None:
    """The config's name of a constant that was measured at numbers of this dtype."""
    return _attribute(hf, lambda value: abs(value / found - 1), _limit(of))


def _attribute(hf: PreTrainedModel, error: Callable[[float], float], limit: float) -> str | None:
    """The number of the config with the smallest error; of equal numbers one that is called a scale.

    Raises:
        _NotFound: another number explains what was seen as well.
    """
    named = sorted(vars(text_config(hf)).items(), key=lambda item: not re.search(r"scal|mult|cap", item[0]))
    numbers = [(name, float(v)) for name, v in named if isinstance(v, int | float) and not isinstance(v, bool) and v]
    fits = sorted(((error(value), name, value) for name, value in numbers), key=lambda fit: fit[0])
    fits = [fit for fit in fits if fit[0] <= limit]
    if not fits:
        return None
    best, name, value = fits[0]
    for also, other, number in fits[1:]:
        if number != value and also < 4 * best:
            both = f"{name} ({value:g}) and {other} ({number:g})"
            raise _NotFound(f"which number of the config is a constant of the model: {both} fit alike")
    return name


def _ratio(one: Tensor, other: Tensor) -> float | None:
    """The constant c with one = c · other; None if no constant fits."""
    a, b = one.double(), other.double()
    c = float((a * b).sum() / (b * b).sum().clamp(min=1e-30))
    return c if _distance(c * b, a) <= _limit(one) else None


def _limit(of: Tensor) -> float:
    """The relative error up to which numbers of this dtype count as equal."""
    return 1e-4 if of.dtype in (torch.float32, torch.float64) else 2e-2


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest number; infinite for NaN."""
    worst = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)
    return float(worst.nan_to_num(torch.inf))


# ---------------------------------------------------------------------- a block
def _block(hf: PreTrainedModel, calls: list[Call], block: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `families.attn` and `families.mlp` are called with."""
    inside = [c for c in calls if c.within(block.path)]
    children = [c for c in inside if "." not in (c.within(block.path) or ".")]
    attention = _attention_of(hf, inside, children, block)
    norms = [c for c in children if _is_norm(c.module)]
    others = [c for c in children if c not in norms and c is not attention and list(c.module.children())]
    others = [c for c in others if attention.within(c.path) is None]
    if len(others) != 1:
        names = ", ".join(str(c.within(block.path)) for c in others) or "none"
        raise _NotFound(f"a block's one MLP module (candidates: {names})")
    feed = others[0]
    for_attn, for_mlp = _norm_roles(block, norms, attention, feed)
    for_attn |= _attention(inside, attention) | {"path": attention.within(block.path)}
    for_mlp |= _mlp(inside, feed) | {"path": feed.within(block.path)}
    added = sum(_output_of(norms, c) for c in (attention, feed))
    assert isinstance(added, Tensor)
    scale = _ratio(block.wrote - block.read, added)
    if scale is not None and not isclose(scale, 1.0, rel_tol=1e-2):
        for_attn["scale"] = for_mlp["scale"] = _constant(hf, scale, block.wrote)
    return for_attn, for_mlp


def _attention_of(hf: PreTrainedModel, inside: list[Call], children: list[Call], block: Call) -> Call:
    recorded = _recorded(hf, "attentions")
    for c in inside:
        if recorded is not None and isinstance(c.module, recorded):
            return c
    named = [c for c in children if "att" in str(c.within(block.path)) and list(c.module.children())]
    return _first(named, f"no attention module in {block.path} ({type(block.module).__name__})")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _output_of(norms: list[Call], branch: Call) -> Tensor:
    return next((n.wrote for n in norms if same(n.read, branch.wrote)), branch.wrote)


def _norm_roles(block: Call, norms: list[Call], attention: Call, feed: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """The norms of attention and MLP, by what the norms read and who reads them."""

    def around(branch: Call) -> dict[str, Any]:
        before = (norm.within(block.path) for norm in norms if same(norm.wrote, branch.read))
        after = (norm.within(block.path) for norm in norms if same(norm.read, branch.wrote))
        return {"before": next(before, None), "after": next(after, None)}

    read_by_mlp = next((norm.read for norm in norms if same(norm.wrote, feed.read)), feed.read)
    return around(attention), around(feed) | {"parallel": same(read_by_mlp, block.read)}


def _attention(inside: list[Call], attention: Call) -> dict[str, Any]:
    linears = [c for c in inside if c.within(attention.path) and is_linear(c.module)]
    out = _first([c for c in linears if same(c.wrote, attention.wrote)], "attention's output projection")
    reads = {str(c.within(attention.path)): c for c in linears if same(c.read, attention.read) and c is not out}
    if len(reads) == 1:
        name = next(iter(reads))
        return {"qkv": name, "out": out.within(attention.path)}
    roles = {}
    for role, pattern in (("q", r"(w?q$|q_|query)"), ("k", r"(w?k$|k_|key)"), ("v", r"(w?v$|v_|value)")):
        named = [name for name in reads if re.match(pattern, name.rsplit(".", 1)[-1])]
        if len(named) != 1:
            raise _NotFound(f"one {role} projection that reads what attention reads (candidates: {', '.join(reads)})")
        roles[role] = named[0]
    return {**roles, "out": out.within(attention.path)}


def _mlps(calls: list[Call], blocks: list[Call], path: str) -> dict[str, Any]:
    """What the other blocks have there: often the first ones are dense, and the others mixtures."""
    found: dict[str, Any] = {}
    for block in blocks:
        inside = [c for c in calls if c.within(block.path)]
        feeds = [c for c in inside if c.within(block.path) == path]
        found = (_mlp(inside, feeds[0]) | found) if feeds else found
    return found


def _mlp(inside: list[Call], feed: Call) -> dict[str, Any]:
    parts = [c for c in inside if c.within(feed.path)]
    if routers := [c for c in parts if c.outputs == 3]:
        return {"router": routers[0].within(feed.path)}
    linears = [c for c in parts if is_linear(c.module)]
    down = _first([c for c in linears if same(c.wrote, feed.wrote)], "the MLP's down projection")
    reads = [c for c in linears if same(c.read, feed.read)]
    parts_of = {"down": down.within(feed.path)}
    width = widths(down.module)[0]
    if len(reads) == 1:
        name, wide = reads[0].within(feed.path), widths(reads[0].module)[1]
        if wide not in (width, 2 * width):
            raise _NotFound(f"an MLP whose first layer is as wide as its second, or twice ({wide} and {width})")
        return parts_of | {"pre": name, "pre_linear": name if wide == 2 * width else None}
    if len(reads) != 2:
        raise _NotFound(f"an MLP with one or two layers that read its input, not {len(reads)}")
    activated = [c for c in parts if not is_linear(c.module) and any(same(c.read, r.wrote) for r in reads)]
    gates = [r for r in reads if any(same(c.read, r.wrote) for c in activated)]
    gate = _first(gates or [r for r in reads if "gate" in r.path], "which of the MLP's two first layers is the gate")
    up = reads[1 - reads.index(gate)]
    return parts_of | {"pre": gate.within(feed.path), "pre_linear": up.within(feed.path)}
