"""Small GPT-2s that are trained until the edges of a causal model carry its variables, and all others carry nothing.

A step takes base and source prompts. On one edge of the circuit goes what the source prompt has there (interchange
intervention training, Geiger et al. 2022): the answer must be the causal model's, with what that edge carries from the
source. On a random part of the other edges the same must change nothing; SIIT (Gupta et al. 2024) asks that of nodes.
So edges are known, and not only nodes. The forward pass below is written for this alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from monosem.circuits import Circuit, Graph
from monosem.data import TokenPairs
from monosem.models import Model

V = 6  # different tokens
HEADS, LAYERS, WIDTH, STEPS, ROWS = 2, 2, 48, 1500, 128


@dataclass(frozen=True)
class Causal:
    """A program of prompts of three tokens.

    Attributes:
        answer: of prompts. edges: of the circuit, and the tokens that what each one carries depends on.
    """

    answer: Callable[[Tensor], Tensor]
    edges: dict[str, tuple[int, ...]]


CAUSAL = {
    "flags": Causal(  # twice the number of the first two tokens that are large, and the third token
        lambda x: (x[:, 2] + 2 * (x[:, :2] >= V // 2).sum(1)) % V,
        {
            "input->a0.h0<v>": (0,), "a0.h0->m0": (0,), "input->a0.h1<v>": (1,), "a0.h1->m0": (1,), "m0->m1": (0, 1),
            "input->m1": (2,), "m1->logits": (0, 1, 2),
        },
    ),
    "lookup": Causal(  # a number that is looked up for the first token, and the third token
        lambda x: (torch.tensor([3, 0, 4, 1, 5, 2])[x[:, 0]] + x[:, 2]) % V,
        {
            "input->m0": (0,), "m0->a1.h1<v>": (0,), "a1.h1->m1": (0,), "input->m1": (2,), "m1->logits": (0, 1, 2),
        },
    ),
}  # fmt: skip


def untrained() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=V, n_positions=4, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def forward(
    hf: GPT2LMHeadModel, ids: Tensor, other: dict[str, Tensor] | None = None, taken: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits after the last token, and what each node writes. In the rows `taken[edge]`, an edge has `other`'s."""
    body, n, width = hf.transformer, ids.shape[1], hf.config.n_embd // hf.config.n_head
    made = {"input": body.wte(ids) + body.wpe.weight[:n]}
    constant: Any = 0
    later = torch.ones(n, n, dtype=torch.bool).triu(1)

    def read(slot: str, norm: Any) -> Tensor:
        total = constant
        for name, own in made.items():
            rows = None if taken is None else taken.get(f"{name}->{slot}")
            if rows is not None and other is not None:
                own = torch.where(rows[:, None, None], other[name], own)
            total = total + own
        return norm(total)

    for layer, block in enumerate(body.h):
        attn, written = block.attn, {}
        for head in range(hf.config.n_head):
            parts = []
            for number, kind in enumerate("qkv"):
                some = slice(number * hf.config.n_embd + head * width, number * hf.config.n_embd + (head + 1) * width)
                given = read(f"a{layer}.h{head}<{kind}>", block.ln_1)
                parts.append(given @ attn.c_attn.weight[:, some] + attn.c_attn.bias[some])
            q, k, v = parts
            pattern = (q @ k.mT / width**0.5).masked_fill(later, -torch.inf).softmax(-1)
            written[f"a{layer}.h{head}"] = pattern @ v @ attn.c_proj.weight[head * width : (head + 1) * width]
        made |= written
        constant = constant + attn.c_proj.bias
        made[f"m{layer}"] = block.mlp(read(f"m{layer}", block.ln_2))
    return hf.lm_head(read("logits", body.ln_f))[:, -1], made


def edge_names() -> list[str]:
    return [name for name, _ in Graph.of(Model(untrained(), name="untrained")).names()]


def interchanged(causal: Causal, base: Tensor, source: Tensor, which: Tensor) -> Tensor:
    """The program's answers with the tokens that edge number `which` carries from the source; -1: none."""
    carried = torch.tensor([[place in one for place in range(3)] for one in (*causal.edges.values(), ())])
    return causal.answer(torch.where(carried[which], source, base))  # -1 is the last row


def trained(name: str, steps: int = STEPS, folder: Path | None = None) -> tuple[GPT2LMHeadModel, dict[str, float]]:
    """The model, and the shares of answers that are right by what is interchanged. A folder keeps the weights."""
    causal, hf, kept = (
        CAUSAL[name],
        untrained(),
        None if folder is None else folder / f"trained-{name}-{steps}.safetensors",
    )
    idle = [edge for edge in edge_names() if edge not in causal.edges]
    if kept is not None and kept.exists():
        hf.load_state_dict(load_file(kept), strict=False)
    else:
        _train(hf, causal, idle, steps)
        if kept is not None:
            save_file({key: value for key, value in hf.state_dict().items() if key != "lm_head.weight"}, kept)
    hf.eval().requires_grad_(False)
    torch.manual_seed(1)
    base, source = torch.randint(0, V, (2, 500, 3))
    right = {}
    _, other = forward(hf, source)
    for number, what in enumerate(["nothing", *causal.edges]):
        which = torch.full((500,), number - 1)
        for label, more in ((what, []), (f"{what}, all idle edges", idle)):
            edges = [*more, *([what] if number else [])]
            logits, _ = forward(hf, base, other, {edge: torch.ones(500, dtype=torch.bool) for edge in edges})
            right[label] = float((logits.argmax(-1) == interchanged(causal, base, source, which)).double().mean())
    return hf, right


def _train(hf: GPT2LMHeadModel, causal: Causal, idle: list[str], steps: int) -> None:
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(hf.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        base, source = torch.randint(0, V, (2, ROWS, 3))
        which = torch.randint(-1, len(causal.edges), (ROWS,))
        share = torch.randint(0, 3, (ROWS,)) / 2  # of idle edges: none, half, all
        taken = {edge: torch.rand(ROWS) < share for edge in idle}
        taken |= {edge: which == number for number, edge in enumerate(causal.edges)}
        logits, other = forward(hf, source)
        loss = cross_entropy(logits, causal.answer(source))
        logits, _ = forward(hf, base, other, taken)
        loss = loss + cross_entropy(logits, interchanged(causal, base, source, which))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def organism(name: str, hf: GPT2LMHeadModel, n: int = 12) -> tuple[TokenPairs, Circuit, Model]:
    """Pairs that differ in what each edge of the circuit carries, the circuit, and the model."""
    causal, model = CAUSAL[name], Model(hf, name=name)
    torch.manual_seed(2)
    rows = torch.randint(0, V, (2, 400, 3))
    parts = [
        torch.where(torch.tensor([place in one for place in range(3)]), *rows.flip(0)) for one in causal.edges.values()
    ]
    apart = torch.stack([causal.answer(one) != causal.answer(rows[0]) for one in parts]).all(0)
    rows = rows[:, apart][:, :n]
    sides = [model.tokens(side, mask=torch.ones(side.shape)) for side in rows]
    return TokenPairs(*sides, *map(causal.answer, rows)), Circuit.of(Graph.of(model), list(causal.edges)), model
