"""A row of the family table for an architecture that has none, found by what its modules do in one forward pass.

transformers names the classes of blocks and attention modules (`_can_record_outputs`); who reads and writes what is
seen in a trace: the norm whose output attention reads is ln1, the one that reads attention's output is a post-norm,
the linear layer whose output is the module's output is the output projection, and so on. Nothing is taken on trust:
the row is used only if the identities of `verify.py` hold on the model itself, and the user is told.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import UnknownName, cause
from ..language import is_multimodal, language_model, text_config
from ..model import Model
from ..native import device_of, refuse_compiled
from ..places.families import BY_TYPE, Family, attn, mlp
from .anatomy import block_of, mlps_of
from .ends import ends_of
from .finding import NotFound, recorded_class
from .tracing import trace
from .verify import verify

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
    except NotFound as error:
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


def _rows(hf: PreTrainedModel) -> Iterator[Family]:
    """Rows that the trace allows: two where q, k and v are fused and both layouts have the right size."""
    config = text_config(hf)
    calls = trace(hf, torch.arange(6, device=device_of(hf))[None])
    layers = _layers(hf)
    modules = {*language_model(hf).get_submodule(layers).children()}
    blocks = [c for c in calls if c.module in modules]
    if len(blocks) < config.num_hidden_layers:
        raise NotFound(f"only {len(blocks)} of {config.num_hidden_layers} blocks of {layers} were called")
    row = Family(config.model_type, (config.model_type,), layers=layers)
    row = replace(row, **ends_of(hf, calls, blocks))
    attention, rest = block_of(hf, calls, blocks[0])
    rest = mlps_of(calls, blocks[1:], rest["path"]) | rest
    attention["clip"] = "clip_qkv" if hasattr(config, "clip_qkv") else None
    yield replace(row, branches=(attn(**attention), mlp(**rest)))
    if "qkv" in attention:
        yield replace(row, branches=(attn(**attention | {"fused": "interleaved"}), mlp(**rest)))


def _layers(hf: PreTrainedModel) -> str:
    """The list of blocks: of the class that transformers records hidden states of, as long as the config says."""
    recorded, layers = recorded_class(hf, "hidden_states"), getattr(text_config(hf), "num_hidden_layers", 0)
    for path, module in language_model(hf).named_modules():
        whole = isinstance(module, nn.ModuleList) and len(module) == layers > 0
        if whole and (recorded is None or isinstance(module[0], recorded)):
            return path
    raise NotFound("no list of blocks as long as config.num_hidden_layers")
