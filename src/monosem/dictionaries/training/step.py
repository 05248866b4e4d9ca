"""One optimiser step."""

import torch
from torch import Tensor

from ...jobs import Health
from .config import TrainConfig
from .end_to_end import Rest
from .forward import passes_of, revival, together, unexplained
from .kinds import KINDS, Moment, Pass
from .kinds.kind import Penalty
from .precisions import PRECISIONS
from .state import Batch, TrainingState

Record = dict[str, float | None]


def train_step(
    state: TrainingState,
    config: TrainConfig,
    batch: Batch,
    device: torch.device,
    health: Health,
    logged: bool,
    rest: Rest | None = None,
) -> Record:
    """One optimiser step on a raw batch; gives its record when `logged`, else an empty one and waits for no GPU.

    `rest`: of the model after this batch, where the loss is its.

    A record holds this step's numbers (not means over steps, so that a resumed run logs the same). loss: what was
    minimised (end to end: in nats); auxk: its auxiliary part; sparsity: its penalty, of kinds with one; fve:
    1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over the batch, of what is rebuilt; l0: mean active codes a token; dead: share of latents
    silent for `dead_after` tokens, None before so many; lr: the rate of this step.
    """
    form, kind = state.form, KINDS[config.kind]
    x, y, wild = state.scaled(batch, device)
    state.find_dead(config.dead_after)

    products = PRECISIONS[config.precision].products
    with products(device):
        passes = passes_of(form, x, config, device)
        done = together(form, passes)
    if rest is None:
        loss = rebuilding = unexplained(done, y, config, state.variance)
    else:  # the model computes in its own dtype
        loss = rebuilding = rest.loss(done.reconstruction / state.scales[-1], wild, config).to(device)
    auxiliary, sparsity, k_aux = loss.new_zeros(()), None, config.auxk_of(state.widths[0])
    if any(map(len, state.dead)) and k_aux and config.auxk_coefficient:
        with products(device):
            revived = revival(form, x, y - done.reconstruction, state.dead, k_aux, kind.saved == "abstopk")
        loss = loss + config.auxk_coefficient * revived
        auxiliary = loss - rebuilding
    if kind.penalty is not None:
        with products(device):
            sparsity = _penalty(kind.penalty, state, config, passes, y)
        loss = loss + sparsity
    loss.backward()
    health.watch(state.step + 1, x if y is x else x.sum() + y.sum(), loss)
    _optimise(state, config)
    state.note(x, done.fired)
    state.step += 1
    if not logged:
        return {}
    parts = {"loss": loss, "auxk": auxiliary} | ({} if sparsity is None else {"sparsity": sparsity})
    return _record(state, config, parts, y, done)


@torch.no_grad()
def _record(state: TrainingState, config: TrainConfig, parts: dict[str, Tensor], y: Tensor, done: Pass) -> Record:
    """Of the step that was just made; a GPU is waited for once."""
    left = torch.linalg.vector_norm(y - done.reconstruction) / torch.linalg.vector_norm(y - y.mean(0))
    values = {**parts, "fve": 1 - left.square(), "l0": done.active / len(y)}
    numbers = dict(zip(values, torch.stack(list(values.values())).tolist()))
    step = state.step
    about = {"step": step, "tokens": step * config.batch_tokens}
    return about | numbers | {"dead": state.dead_share(config), "lr": config.lr_at(step - 1)}


def _penalty(penalty: Penalty, state: TrainingState, config: TrainConfig, passes: list[Pass], y: Tensor) -> Tensor:
    """Its mean over layers."""
    moment, layers = Moment(state.step / config.steps, state.unit), state.form.layers
    each = [penalty(layer.form, done, y[:, layer.writes], config, moment) for layer, done in zip(layers, passes)]
    return torch.stack(each).mean()


def _optimise(state: TrainingState, config: TrainConfig) -> None:
    """One step of the optimiser from the gradients that there are, and what then holds for the weights."""
    form, optimizer = state.form, state.optimizer
    for layer in form.layers:
        layer.form.project_decoder_gradient()
    gradients = [p.grad for p in form.parameters() if p.grad is not None]
    optimizer.grad_scale = _excess(gradients, config.clip)  # type: ignore[attr-defined]  # torch's fused Adam reads it
    for group in optimizer.param_groups:
        group["lr"] = config.lr_at(state.step)
    optimizer.step()
    optimizer.zero_grad()
    for layer in form.layers:
        layer.form.normalise_decoder()
        KINDS[config.kind].constrain(layer.form)


def _excess(gradients: list[Tensor], most: float) -> Tensor:
    """What gradients are divided by so that their norm is at most that. Adam divides as it reads them, where
    `clip_grad_norm_` would go over them once more."""
    return (torch.nn.utils.get_total_norm(gradients) / most).clamp(min=1.0)
