"""A probe that watches while a model writes, and which detector also steers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import edits
from ..directions import Direction
from ..errors import BadInput, check_name
from ..metrics import kl
from ..models import Generation, Model, Moment
from ..plots import Figure, lines
from ..results import Result, Tabled, analysis
from ..statistics import auroc_interval, standard_error
from .kinds import KINDS
from .probe import Probes
from .rows import Rows

Running = Literal["token", "mean", "max", "ema", "window", "noisy_or"]
HALF_LIFE, WINDOW = 8.0, 16  # tokens


class Reading:
    """One number for what a row has said so far, from the log-odds of its tokens, which come one chunk after another.

    "token": the newest; "mean" and "max" of all; "ema": an average that forgets half in `HALF_LIFE` tokens; "window":
    the largest mean of `WINDOW` tokens (fewer at the start); "noisy_or": that at least one token is positive, as
    log-odds. Whatever the chunks, the numbers are the same.
    """

    def __init__(self, how: Running = "ema"):
        check_name("way to read tokens", how, ("token", "mean", "max", "ema", "window", "noisy_or"))
        self.how = how
        self.seen: list[Tensor] = []
        self.state: Tensor | None = None

    def add(self, f: Float[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """The numbers after each of these tokens; a token that is masked changes nothing."""
        return torch.stack([self._step(f[:, i], mask[:, i]) for i in range(f.shape[1])], 1)

    def _step(self, f: Tensor, real: Tensor) -> Tensor:
        if self.state is None:
            self.state = torch.full((3, len(f)), torch.nan, dtype=f.dtype)
            self.state[1:] = 0.0
            self.recent = torch.full((len(f), WINDOW), torch.nan, dtype=f.dtype)
        now, total, count = self.state
        first, count = now.isnan(), count + real
        total = total + torch.where(real, f, 0.0)
        if self.how == "window":
            shifted = torch.cat([self.recent[:, 1:], f[:, None]], 1)
            self.recent = torch.where(real[:, None], shifted, self.recent)
        keep = 0.5 ** (1 / HALF_LIFE)
        new: Callable[[], Tensor] = {
            "token": lambda: f,
            "mean": lambda: total / count,
            "max": lambda: torch.where(first, f, torch.maximum(now, f)),
            "ema": lambda: torch.where(first, f, keep * now + (1 - keep) * f),
            "window": lambda: _larger(now, self.recent.nanmean(1)),
            "noisy_or": lambda: _either(now, f),
        }[self.how]
        self.state = torch.stack([torch.where(real, new(), now), total, count])
        return self.state[0]


def _larger(now: Tensor, f: Tensor) -> Tensor:
    return torch.where(now.isnan(), f, torch.maximum(now, f))


def _either(now: Tensor, f: Tensor) -> Tensor:
    """Log-odds of 1 - (1 - p)(1 - q)."""
    neither = torch.nn.functional.softplus(f) + torch.nn.functional.softplus(torch.where(now.isnan(), -torch.inf, now))
    return neither + torch.log(-torch.expm1(-neither)).clamp(min=-1e300)


@dataclass(frozen=True)
class Watched(Result):
    """`table`: a row a token that the model read (the last one that it wrote is not read): its score, the reading so
    far, and whether it is above the threshold. Tokens that the probe was not fitted on (the first, special ones,
    outliers in norm) leave the reading as it was; it is NaN before the first that counts.

    Attributes:
        generation: what was written.
        first: of each prompt, the index of the first token at which the probe fires; None where it never does.
        delay: of each prompt, how many tokens of its own the model had written by then; negative in the prompt.
        cost: multiplications of the probe a token, by the model's number of parameters.
        seconds: of the whole, and spent in the probe.
    """

    generation: Generation = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    first: list[int | None]
    delay: list[int | None]
    cost: float
    seconds: tuple[float, float]
    config: dict[str, Any] = field(default_factory=dict)

    ranked_by: ClassVar[str | None] = "reading"

    @property
    def table(self) -> pd.DataFrame:
        return self.rows

    def plot(self) -> Figure:
        curves: dict[str, Any] = {}
        longest = int(self.rows["position"].max()) + 1
        for prompt, part in self.rows.groupby("prompt"):
            curves[f"prompt {prompt}"] = (
                part.set_index("position")["reading"].reindex(range(longest)).to_numpy(),
                None,
            )
        return lines(curves, list(map(float, range(longest))), x_title="token", y_title="reading (log-odds)", zero=True)


@analysis
def watch(
    model: Model,
    prompts: Any,
    probe: Probes,
    *,
    how: Running = "ema",
    threshold: float | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    **generation: Any,
) -> Watched:
    """Generate, and read a probe at every token as it passes: prompts in one batch, with the KV cache.

    Args:
        probe: of one place and one state a token; calibrated or not.
        how: what is kept of the tokens so far; see `Reading`.
        threshold: of the reading; default: the probe's, which is right for readings of the kind it was chosen on.
        generation: what `model.generate` takes: edits, temperature, ...

    Raises:
        BadInput: a probe of several places, or of whole texts. Mismatch: a probe of another model.
    """
    probe.check(model)
    if len(probe) != 1 or KINDS[probe.kind].tokens:
        raise BadInput("a monitor is a probe of single states at one place: choose it with .best or .at(...)")
    probe.prepare(model)
    edge = float(probe.threshold[0]) if threshold is None else float(threshold)
    look = _Look(probe, how)
    watcher = edits.Edit(probe.places[0].site, look, "look on")
    own = generation.pop("edits", ())
    all_edits = [*([own] if hasattr(own, "apply") else own), watcher]
    began = time.perf_counter()
    made = model.generate(prompts, edits=all_edits, max_new_tokens=max_new_tokens, seed=seed, **generation)
    seconds = (time.perf_counter() - began, look.seconds)
    f, so_far = (torch.cat(parts, 1) for parts in zip(*look.seen))
    table, first, delay = [], [], []
    for row, (old, new) in enumerate(zip(made.prompt.rows(), made.new)):
        start = made.prompt.ids.shape[1] - len(old)  # prompts are padded on the left
        read = enumerate(zip([*old, *new], f[row, start:].tolist(), so_far[row, start:].tolist()))
        mine = [(row, i, model.str_token(token), one, now, now > edge, i >= len(old)) for i, (token, one, now) in read]
        hit = next((i for _, i, _, _, _, fires, _ in mine if fires), None)
        first.append(hit)
        delay.append(None if hit is None else hit + 1 - len(old))
        table += mine
    columns = ["prompt", "position", "token", "score", "reading", "fires", "generated"]
    parameters = sum(one.numel() for one in model.hf.parameters())
    size = sum(value[0].numel() for name, value in probe.parts.items() if name != "pattern")
    frame = pd.DataFrame(table, columns=columns)
    return Watched(made, frame, first, delay, size / parameters, seconds, {"threshold": edge})


class _Look:
    """What the edit of `watch` does at each pass: it keeps scores and readings, and changes nothing."""

    def __init__(self, probe: Probes, how: Running):
        self.probe, self.how, self.reading = probe, how, Reading(how)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.seconds = 0.0

    def __call__(self, x: Tensor, moment: Moment) -> Tensor:
        began = time.perf_counter()
        if moment.column == 0:  # the prompt; or all tokens are run anew
            self.seen.clear()
            self.reading = Reading(self.how)
        f = self.probe.token_log_odds(x).cpu()
        left_out = torch.stack(list(self.probe.left_out(x, moment).values())).any(0)
        self.seen.append((f, self.reading.add(f, (moment.mask & ~left_out).cpu())))
        self.seconds += time.perf_counter() - began
        return x


# ---------------------------------------------------------------------- predict and control
@dataclass(frozen=True)
class PredictControl(Tabled):
    """`table`: for each direction or edit: how well it detects (AUROC on the rows, with its interval; NaN for an edit),
    how far it moves the metric, with the standard error over prompts, how far a random direction of the same length
    does, and what it costs (KL of the next token, nats)."""

    ranked_by: ClassVar[str | None] = "effect"


@analysis
def predict_control(
    model: Model,
    arms: Mapping[str, Direction | edits.Edit | Sequence[edits.Edit]],
    rows: Rows,
    prompts: Sequence[str],
    metric: Callable[[Float[Tensor, "batch vocab"]], Float[Tensor, "batch"]],
    *,
    strength: float = 0.5,
    seed: int = 0,
) -> PredictControl:
    """Which detector also steers: the same vector read on labelled rows, and added while prompts are run.

    Args:
        arms: directions detect by their `read`, where they have one, and are added at their site, `strength` times the
            mean length of the rows' states there; edits are taken as they are.
        rows: held-out rows, at the sites of the directions.
        metric: of the logits after the last token; grows with the behaviour.

    Raises:
        BadInput: rows of one class, a direction whose site the rows do not have at one position.
    """
    rows.check_two_classes("detection")
    draw = torch.Generator().manual_seed(seed)

    def logits(change: Any = ()) -> Tensor:
        made = model.run(list(prompts), edits=change, logits="last").logits
        assert made is not None
        return made

    clean = logits()
    table = []
    for name, arm in arms.items():
        change: Any = arm
        control, found = torch.full((len(prompts),), torch.nan), [float("nan")] * 3
        if isinstance(arm, Direction):
            states = rows.at(str(arm.site)).x[0]
            f = states.double() @ (arm.unit if arm.read is None else arm.read).double()
            found = list(auroc_interval(f[rows.y], f[~rows.y]))
            size = strength * float(states.norm(dim=1).mean())
            change = edits.add((arm.site, arm.unit * size))
            noise = torch.nn.functional.normalize(torch.randn(len(arm.vector), generator=draw), dim=0)
            control = metric(logits(edits.add((arm.site, noise * size)))) - metric(clean)
        moved = logits(change)
        effect, cost = (metric(moved) - metric(clean)).double(), float(kl(clean, moved).mean())
        table.append((name, *found, float(effect.mean()), float(standard_error(effect)), float(control.mean()), cost))
    columns = ["arm", "auroc", "low", "high", "effect", "effect_se", "random_effect", "kl"]
    return PredictControl(pd.DataFrame(table, columns=columns), {"rows": rows.named, "prompts": len(prompts)})
