"""Path patching: how much of what a sender does reaches the output through one receiver.

Activation patching of a head moves everything downstream of it. A path patch moves what one receiver reads:

1. both prompts are run; the *base* run is the clean one ("noising") or the corrupted one ("denoising"), the other is
   the *source*;
2. senders write what they write in the source run, while all other heads keep their base output; the receivers' inputs
   are recorded;
3. the base run is repeated with the receivers reading the recorded inputs; everything behind them is computed anew.

Nothing is linearised: norms see the changed stream, qk-norm and rotation follow natively, the change of a head in front
of a post-norm is taken after it (Wang et al. 2022, arXiv:2211.00593; the residual-difference form).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data import TokenPairs
from ...errors import BadInput
from ...models import Model
from ...models.running.budget import bytes_of
from ...results import analysis
from ..cells import Position, SpanPositions, index_of, listed
from ..corruptions import PROMPT
from ..experiment import Direction, Experiment
from ..scoring import MetricLike, metrics_of, refuse_joint
from ..trials import direction_of
from .nodes import NodeSet, NodesLike, receivers_of, sender_kinds, senders_of
from .readings import Passage, Reading, ends_block, logits_of
from .result import Path, Paths
from .streams import Streams


@analysis
def paths(
    model: Model,
    pairs: TokenPairs,
    senders: NodesLike | None = None,
    receivers: NodesLike = "logits",
    *,
    metric: MetricLike = "logit_diff",
    direction: Direction = "noising",
    positions: SpanPositions | None = None,
    freeze_mlps: bool = True,
    memory: str | int = "1GB",
    quiet: bool = False,
) -> Paths:
    """Patch the path from every sender (set) to every receiver (set) behind it.

        found = ms.patching.paths(model, pairs, senders="z", receivers=["q.20.3", "logits"])
        found.plot(receiver="q.20.3")

    Args:
        senders: default, every sender there is.
        senders, receivers: names as listed in `patching.paths.nodes`, each patched alone; or `{label: [names]}`, all
            nodes of a label together.
        metric: as in a sweep: names of `METRICS`, functions, several at once.
        direction: "noising" sends corrupted values along the path in the clean run, "denoising" the reverse.
        positions: token indices or names of spans at which senders are changed (default: all). The way from sender to
            receiver keeps to its position, so receivers read something new at the same positions.
        freeze_mlps: True: direct edges only, MLPs between sender and receiver keep their base output. False: they
            answer to the change (the definition of Wang et al.), so a path may lead through them.
        memory: budget of one batch of runs, estimated from shapes.

    Raises:
        UnknownName, BadInput: unknown nodes, metrics or positions; no path from any sender to any receiver; edits that
            are in force (`model.editing`), which would not reach the parts that are computed here.
    """
    sending, receiving = (
        senders_of(model, list(sender_kinds(model)) if senders is None else senders),
        receivers_of(model, receivers),
    )
    first = {one: min(node.depth(model) for node in one.nodes) for one in sending}
    last = {one: max(node.depth(model) for node in one.nodes) for one in receiving}
    chosen = [Path(s, r) for s in sending for r in receiving if first[s] < last[r]]
    if not chosen:
        raise BadInput("no path leads from these senders to these receivers: receivers must lie behind senders")
    return along(
        model, pairs, chosen, metric=metric, direction=direction, positions=positions, freeze_mlps=freeze_mlps,
        memory=memory, quiet=quiet,
    )  # fmt: skip


def along(
    model: Model,
    pairs: TokenPairs,
    chosen: Sequence[Path],
    *,
    metric: MetricLike = "logit_diff",
    direction: Direction = "noising",
    positions: SpanPositions | None = None,
    freeze_mlps: bool = True,
    memory: str | int = "1GB",
    quiet: bool = False,
) -> Paths:
    """`paths` for paths that are given one by one, each from a sender to a receiver behind it."""
    direction = direction_of(direction, PROMPT)
    if model.ambient_edits:
        raise BadInput("path patching inside model.editing(...) would miss its edits; leave that block first")
    refuse_joint(pairs, "paths")
    receiving = list(dict.fromkeys(path.receiver for path in chosen))
    rows = _rows_at_once(model, pairs, receiving, memory)
    at_once = min(rows, len(pairs))
    at = None if positions is None else listed(pairs, positions)
    job = _Job(model, pairs, chosen, direction, at, freeze_mlps, rows // at_once)
    experiment = Experiment(pairs, metrics_of(metric), direction, job.trials, at_once, model=model.name)
    ends = {end: [getattr(path, end).label for path in chosen] for end in ("sender", "receiver")}
    run = experiment.run(job.runs, ends, label="paths", quiet=quiet)
    return Paths.of(run, paths=chosen, method="direct" if freeze_mlps else "through MLPs")


@dataclass(frozen=True, eq=False)
class PathTrial:
    """Some pairs, the base run's stream, and how the senders' outputs differ from it in the other run."""

    pairs: TokenPairs
    streams: Streams
    clean_logits: Float[Tensor, "pairs vocab"]
    other_logits: Float[Tensor, "pairs vocab"]


@dataclass(frozen=True, eq=False)
class _Job:
    """All paths, for any of the pairs. `batch`: passages, or sender sets, that run at once."""

    model: Model
    pairs: TokenPairs
    paths: Sequence[Path]
    direction: Direction
    positions: Sequence[Position] | None
    freeze_mlps: bool
    batch: int

    def trials(self, rows: slice) -> Iterator[tuple[PathTrial, float]]:
        order = 1 if self.direction == "noising" else -1
        pairs = self.pairs[rows].to(self.model.device)
        base, source = (pairs.clean, pairs.corrupted)[::order]
        with torch.no_grad():
            streams = Streams(self.model, base, source, self._senders, _chosen(pairs, self.positions))
        yield PathTrial(pairs, streams, *(streams.logits, streams.source_logits)[::order]), 1.0

    @property
    def _senders(self) -> list[NodeSet]:
        return list(dict.fromkeys(path.sender for path in self.paths))

    @torch.no_grad()
    def runs(self, trial: PathTrial) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Numbers of paths, and their logits `paths*pairs vocab`; every path once."""
        senders = self._senders
        for first in range(0, len(senders), self.batch):
            yield from self._runs(trial.streams, senders[first : first + self.batch])

    def _runs(self, streams: Streams, sets: Sequence[NodeSet]) -> Iterator[tuple[Sequence[int], Tensor]]:
        ready: dict[tuple[int, str, int], list[tuple[int, Passage]]] = {}
        places = {one: place for place, one in enumerate(sets)}
        for number, path in enumerate(self.paths):
            if path.sender in places:
                passage = Passage(places[path.sender], path.receiver)
                ready.setdefault(_batch_key(self.model, path.receiver), []).append((number, passage))
        reading = Reading(streams, frozenset(n for group in ready.values() for _, p in group for n in p.receiver.nodes))
        needed = {last for last, _, _ in ready}
        for stage in streams.stages(sets, max(needed), self.freeze_mlps):
            reading.take(stage)
            for key in [key for key in ready if key[0] == stage.depth]:
                group = ready.pop(key)
                for first in range(0, len(group), self.batch):
                    numbers, passages = zip(*group[first : first + self.batch])
                    yield numbers, logits_of(streams, reading.recorded, passages).flatten(0, 1)
            reading.keep({node for group in ready.values() for _, p in group for node in p.receiver.nodes})


def _batch_key(model: Model, receiver: NodeSet) -> tuple[int, str, int]:
    """Receivers with one key run in one batch: the depth at which all are recorded, their form, where runs begin."""
    last = max(node.depth(model) for node in receiver.nodes)
    if receiver.nodes[0].kind == "logits":
        return last, "logits", model.cfg.n_layers
    form = "change" if ends_block(model, receiver) else "run"
    return last, form, min(int(node.layer or 0) for node in receiver.nodes)


def _chosen(pairs: TokenPairs, positions: Sequence[Position] | None) -> Bool[Tensor, "batch pos"]:
    """The tokens at which senders are changed."""
    tokens = pairs.clean
    if positions is None:
        return tokens.mask
    wanted = torch.zeros_like(tokens.mask)
    for row in range(len(pairs)):
        for position in positions:
            wanted[row] |= tokens.mask[row] & (tokens.positions[row] == index_of(position, pairs, row))
    return wanted


def _rows_at_once(model: Model, pairs: TokenPairs, receivers: Sequence[NodeSet], memory: str | int) -> int:
    """Runs of one pair that fit the budget together: one block's tensors, the logits, and what receivers record."""
    c, length = model.cfg, pairs.clean.ids.shape[1]
    nodes = {node for one in receivers for node in one.nodes}
    widths = [c.d_model if n.reads_whole else c.d_model / length if n.layer is None else c.d_head for n in nodes]
    recorded = sum(widths)
    block = 12 * c.d_model + 4 * c.d_mlp + 4 * c.n_heads * c.d_head
    need = 4 * (length * (block + recorded) + 3 * c.d_vocab)
    return max(1, int(bytes_of(memory) // need))
