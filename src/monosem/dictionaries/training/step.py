"""One optimiser step."""

import torch

from ...jobs import Health
from .config import TrainConfig
from .forward import auxiliary_loss, forward_of, unexplained
from .kinds import KINDS, Moment
from .state import Batch, TrainingState

Record = dict[str, float | None]


def train_step(
    state: TrainingState, config: TrainConfig, batch: Batch, device: torch.device, health: Health, logged: bool
) -> Record:
    """One optimiser step on a raw batch; gives its record when `logged`, else an empty one and waits for no GPU.

    A record holds this step's numbers (not means over steps, so that a resumed run logs the same). loss: what was
    minimised; auxk: its auxiliary part; sparsity: its penalty, of kinds with one; fve: 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over
    the batch, of what is rebuilt; l0: mean active codes a token; dead: share of latents silent for `dead_after` tokens,
    None before so many; lr: the rate of this step.
    """
    form, optimizer, kind = state.form, state.optimizer, KINDS[config.kind]
    x, y = state.scaled(batch, device)
    state.find_dead(config.dead_after)

    done = forward_of(config, device)(form, x, config)
    residual = y - done.reconstruction
    loss = rebuilding = unexplained(done, y, config, state.variance)
    auxiliary, sparsity, k_aux = loss.new_zeros(()), None, config.auxk_of(x.shape[1])
    if len(state.dead) and k_aux and config.auxk_coefficient:
        signed = kind.saved == "abstopk"
        loss = loss + config.auxk_coefficient * auxiliary_loss(form, x, residual, state.dead, k_aux, signed)
        auxiliary = loss - rebuilding
    if kind.penalty is not None:
        moment = Moment(state.step / config.steps, state.variance**0.5)
        sparsity = kind.penalty(form, done, y, config, moment)
        loss = loss + sparsity
    loss.backward()
    health.watch(state.step + 1, x if y is x else x.sum() + y.sum(), loss)

    form.project_decoder_gradient()
    torch.nn.utils.clip_grad_norm_(form.parameters(), config.clip)
    for group in optimizer.param_groups:
        group["lr"] = config.lr_at(state.step)
    optimizer.step()
    optimizer.zero_grad()
    form.normalise_decoder()
    kind.constrain(form)
    state.note(x, done.fired)
    state.step += 1
    if not logged:
        return {}
    with torch.no_grad():
        spread = (y - y.mean(0)).square().sum()
        values = {
            "loss": loss,
            "auxk": auxiliary,
            "fve": 1 - residual.square().sum() / spread,
            "l0": done.active / len(x),
        }
        values |= {} if sparsity is None else {"sparsity": sparsity}
        numbers = dict(zip(values, torch.stack(list(values.values())).tolist()))
    step = state.step
    about = {"step": step, "tokens": step * config.batch_tokens}
    return about | numbers | {"dead": state.dead_share(config), "lr": config.lr_at(step - 1)}
