"""Circuit breakers (representation rerouting; Zou et al. 2024, arXiv 2406.04313): a LoRA that turns a model's states on
some texts away from what they were, and leaves them as they were on others.

The original is the same model with the adapter off. The trained model does not refuse; it loses the thread on such
texts. A few steps of fine-tuning bring the old states back: it is a guard against prompts, not against owners.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import BadInput
from .files import replacing_folder
from .jobs import Checkpoints, Interrupted, Interrupts, JobConfig, Journal, claim, fingerprint, module_fingerprint
from .jobs.config import Seed
from .models import Model, TokenBatch
from .models.loading.adapters import LowRanks, adapter_notes, merged_loras
from .models.turns import refuse_inference_mode
from .progress import Meter

__all__ = ["RerouteConfig", "coefficients", "reroute", "rerouting_loss", "retain_loss"]

# A LoRA begins with B = 0: the states are the original's, where their cosine is 1 and has no gradient at all, and only
# rounding errors (which Adam enlarges) would start the training. So B begins at random numbers of this size.
START = 1e-3
Text = str | tuple[str, str]  # all of its tokens, or a prompt and an answer, of which the answer's
Record = dict[str, float]
Distance = Literal["relative", "absolute"]


class RerouteConfig(JobConfig):
    """How circuit breakers are trained."""

    job: ClassVar[str] = "circuit breaker"
    not_decisive: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds"})

    steps: int = Field(default=40, gt=0)
    batch_size: int = Field(default=4, gt=0, description="texts of each set a step")
    layers: list[int] | None = Field(
        default=None, min_length=1, description="whose states are turned away; None: after a third and two thirds"
    )
    alpha: float = Field(default=10.0, gt=0, description="weight of both losses together")
    distance: Distance = Field(
        default="relative", description="of the retain loss: in norms of the old states, or absolute, as the authors'"
    )
    rank: int = Field(
        default=16, gt=0, description="of the LoRA, which is in every linear layer up to the last of these"
    )
    lr: float = Field(default=1e-3, gt=0, description="the authors' is 1e-4, for 150 steps of larger batches")
    length: int = Field(default=256, gt=1, description="tokens of a text, the first ones")
    seed: Seed = Field(default=0, description="of the adapter's first values and of the order of the texts")
    checkpoint_seconds: float = Field(default=60.0, ge=0)


# ---------------------------------------------------------------------- the losses
States = Float[Tensor, "layer batch pos d_model"]


def rerouting_loss(new: States, old: States, mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean over layers and masked tokens of ReLU(cos(new, old)): 0 where states are at right angles to the old ones."""
    return nn.functional.cosine_similarity(new.float(), old.float(), dim=-1)[:, mask].relu().mean()


def retain_loss(
    new: States, old: States, mask: Bool[Tensor, "batch pos"], distance: Distance = "relative"
) -> Float[Tensor, ""]:
    """Mean over layers and masked tokens of ‖new - old‖₂ / ‖old‖₂; "absolute": of ‖new - old‖₂, as the authors have it.

    An absolute distance pulls with length 1 whatever the states' size; a cosine pulls less the larger they are. Where
    the stream is large (smollm2: norms of 140 at layer 9, 660 at layer 27) the absolute distance's gradient was 600
    times the rerouting loss's at the second step, and nothing turned away.
    """
    before = old.float()[:, mask]
    # the norm of exactly nothing, as at the first step, has no gradient
    moved = (new.float()[:, mask] - before).square().sum(-1).clamp(min=1e-12).sqrt()
    return (moved / before.norm(dim=-1).clamp(min=1e-6) if distance == "relative" else moved).mean()


def coefficients(step: int, steps: int, alpha: float) -> tuple[float, float]:
    """Of the rerouting and of the retain loss at a 0-based step: alpha (1 - t) and alpha t, t = step / (2 steps), as in
    the authors' code: the first falls from alpha to half of it, the second rises from zero."""
    t = step / (2 * steps)
    return alpha * (1 - t), alpha * t


# ---------------------------------------------------------------------- the job
def reroute(
    model: Model,
    stop: Sequence[Text],
    keep: Sequence[Text],
    folder: str | os.PathLike[str],
    *,
    quiet: bool = False,
    on_step: Callable[[Record], None] | None = None,
    **settings: Any,
) -> Path:
    """Train circuit breakers; the model itself stays as it is.

    LoRAs that the model has already, as an organism has, are merged in a copy of it in memory. The adapter that comes
    out then holds them as well, so that it is an adapter of their base.

    Args:
        stop: texts that the model should no longer be able to go on with, or pairs of a prompt (such as
            `model.chat(request)`) and an answer, of which the answer's tokens count.
        keep: texts or pairs on which every layer's states should stay as they are.
        folder: the job's; a job that was stopped goes on from its last checkpoint.
        on_step: is called with the step's losses and coefficients.
        settings: the fields of `RerouteConfig`.

    Returns:
        The adapter, in `folder/adapter`, which `load_model` takes (as peft does).

    Raises:
        BadInput: peft is not installed, the model has an adapter that is no plain LoRA, too few texts or an empty one,
            layers that the model does not have, a loss that is not finite.
        Mismatch, BadFile: as `jobs.claim` for the folder.
        Interrupted: stopped, with a checkpoint.
    """
    config = RerouteConfig.parse(settings)
    refuse_inference_mode("reroute", model.hf)
    layers = _layers(model, config)
    stops, keeps = _Rows(model, "stop", stop, config), _Rows(model, "keep", keep, config)
    made_with = {
        "model": model.name,
        "model_weights": module_fingerprint(model.hf),
        "texts": [stops.print, keeps.print],
    }
    with claim(folder, config, work="checkpoints/*.pt", made_with=made_with) as home:
        plain, before = _without_adapters(model)
        with _adapted(plain, config, max(layers)) as adapter:
            training = _Training(plain, adapter, config, layers, stops, keeps, home)
            training.run(quiet, on_step)
            return training.export(before)


class _Rows:
    """Token ids, and how many of their first ones do not count."""

    def __init__(self, model: Model, name: str, texts: Sequence[Text], config: RerouteConfig):
        if isinstance(texts, str) or len(texts) < config.batch_size:
            raise BadInput(f"{name} is a list of at least batch_size={config.batch_size} texts; give more, or lower it")
        pairs = [(text, "") if isinstance(text, str) else text for text in texts]
        prompts = [model.tokens([prompt]).rows()[0] for prompt, _ in pairs]
        whole = [model.tokens([prompt + answer]).rows()[0][: config.length] for prompt, answer in pairs]
        self.rows = [(row, len(before) if answer else 0) for row, before, (_, answer) in zip(whole, prompts, pairs)]
        for number, (row, first) in enumerate(self.rows):
            if len(row) <= first:
                raise BadInput(f"{name}: the answer of pair {number} begins after length={config.length} tokens")
        self.print = fingerprint(str(self.rows))

    def batch(self, model: Model, draw: random.Random, n: int) -> tuple[TokenBatch, Bool[Tensor, "batch pos"]]:
        """n rows, and which of their tokens count."""
        some = draw.sample(self.rows, n)
        tokens = TokenBatch.of([row for row, _ in some], model.pad).to(model.device)
        first = torch.tensor([[first] for _, first in some], device=model.device)
        return tokens, tokens.mask & (torch.arange(tokens.ids.shape[1], device=model.device) >= first)


class _Training:
    def __init__(
        self,
        model: Model,
        adapter: Any,
        config: RerouteConfig,
        layers: list[int],
        stop: _Rows,
        keep: _Rows,
        home: Path,
    ):
        self.model, self.adapter, self.config, self.stop, self.keep, self.home = (
            model,
            adapter,
            config,
            stop,
            keep,
            home,
        )
        self.stop, self.keep = stop, keep
        self.targets = [f"resid_post.{layer}" for layer in layers]
        self.every = [f"resid_post.{layer}" for layer in range(model.cfg.n_layers)]
        self.weights = {name: one for name, one in adapter.named_parameters() if one.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=config.lr, weight_decay=0.0)
        self.checkpoints, self.journal, self.step = (
            Checkpoints(home / "checkpoints"),
            Journal(home / "metrics.jsonl"),
            0,
        )
        if (saved := self.checkpoints.newest()) is not None:
            for name, one in self.weights.items():
                one.data.copy_(saved["weights"][name])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]
        self.journal.truncate(self.step)

    def run(self, quiet: bool, on_step: Callable[[Record], None] | None) -> None:
        saved, steps = time.monotonic(), self.config.steps
        with Interrupts() as interrupts, Meter("reroute", steps, "steps", quiet, start=self.step) as meter:
            while self.step < steps:
                record = self.advance()
                self.journal.append(record)
                meter.advance(1, rerouting=record["rerouting"], retain=record["retain"])
                last = self.step == steps
                if last or interrupts.asked or time.monotonic() - saved > self.config.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                if on_step:
                    on_step(record)
                if interrupts.asked and not last:
                    raise Interrupted(f"stopped after step {self.step}; run again with {self.home} to go on")

    def advance(self) -> Record:
        """One step: losses before it."""
        model, config, draw = self.model, self.config, random.Random(f"{self.config.seed} {self.step}")
        weights = coefficients(self.step, config.steps, config.alpha)
        losses = []
        for rows, sites, loss, weight in (
            (self.stop, self.targets, rerouting_loss, weights[0]),
            (self.keep, self.every, partial(retain_loss, distance=config.distance), weights[1]),
        ):
            tokens, counted = rows.batch(model, draw, config.batch_size)
            with self.adapter.disable_adapter():
                old = _states(model, tokens, sites, grad=False)
            one = loss(_states(model, tokens, sites, grad=True), old, counted)
            (weight * one).backward()  # type: ignore[no-untyped-call]
            losses.append(float(one.detach()))
        if not all(map(_finite, losses)):
            raise BadInput(f"the loss is not finite at step {self.step}; use a smaller lr")
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        names = ("step", "rerouting", "retain", "rerouting_weight", "retain_weight")
        return dict(zip(names, (self.step, *losses, *weights)))

    def save(self) -> None:
        weights = {name: one.detach().cpu().clone() for name, one in self.weights.items()}
        content = {"step": self.step, "weights": weights, "optimizer": self.optimizer.state_dict()}
        self.checkpoints.save(self.step, content)

    def export(self, before: LowRanks) -> Path:
        """The adapter of peft; with LoRAs of before side by side with the new ones: B A + B' A' = [B B'] [A; A']."""
        import peft

        config = self.adapter.peft_config["default"]
        config.base_model_name_or_path = str(self.model.hf.config._name_or_path or self.model.name)
        config.inference_mode = True
        # peft would ask the Hub whether the vocabulary changed
        state = peft.get_peft_model_state_dict(self.adapter, save_embedding_layers=False)
        for name, factors in before.items():
            for part, old, side in zip(("A", "B"), factors, (0, 1)):
                key = f"base_model.model.{name}.lora_{part}.weight"
                state[key] = torch.cat([old.to(state[key]), state[key]], side) if key in state else old.float()
            config.rank_pattern[name] = config.alpha_pattern[name] = len(
                state[f"base_model.model.{name}.lora_A.weight"]
            )
        config.target_modules = {*config.target_modules, *before}
        tensors = {name: one.cpu().contiguous() for name, one in state.items()}
        with replacing_folder(self.home / "adapter") as temporary:
            config.save_pretrained(str(temporary))
            save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        return self.home / "adapter"


def _states(model: Model, tokens: TokenBatch, sites: list[str], grad: bool) -> States:
    run = model.run(tokens, capture=sites, logits=False, grad=grad)
    return torch.stack([run[site] for site in sites])


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _layers(model: Model, config: RerouteConfig) -> list[int]:
    """Of 32 layers 9 and 19: states 10 and 20 of transformers, where the embedding is state 0."""
    n = model.cfg.n_layers
    middle = sorted({max(round(n * share) - 1, 0) for share in (1 / 3, 2 / 3)})
    layers = middle if config.layers is None else config.layers
    if bad := [layer for layer in layers if not 0 <= layer < n]:
        raise BadInput(f"layers: {model.name} has no layer {bad[0]}; it has {n}")
    return layers


def _without_adapters(model: Model) -> tuple[Model, LowRanks]:
    """The model, or a copy with its LoRAs merged and what they are."""
    if not adapter_notes(model.hf):
        return model, {}
    plain, added = merged_loras(model.hf)
    return Model(plain, model.tokenizer, model.name, model.family), added


@contextmanager
def _adapted(model: Model, config: RerouteConfig, last: int) -> Iterator[Any]:
    """A fresh LoRA in every linear layer of the blocks up to `last`, which is out again after the block."""
    try:
        import peft
    except ImportError as error:
        raise BadInput("circuit breakers need peft: pip install 'monosem[adapters]'") from error
    blocks = {id(module) for block in list(model.blocks)[: last + 1] for module in block.modules()}
    inside = {name: one for name, one in model.hf.named_modules() if id(one) in blocks}
    linear = [name for name, one in inside.items() if isinstance(one, nn.Linear | Conv1D)]
    turned = any(isinstance(one, Conv1D) for one in inside.values())
    kind: dict[str, Any] = {"target_modules": linear, "fan_in_fan_out": turned, "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapter = peft.get_peft_model(model.hf, peft.LoraConfig(r=config.rank, lora_alpha=config.rank, **kind)).eval()
        for name, one in adapter.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(one, std=START)
    try:
        yield adapter
    finally:
        adapter.unload()
