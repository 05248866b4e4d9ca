"""Small GPT-2s with a circuit in their weights: what carries the answer is known, the rest writes where nobody reads.

The stream has parts: the token (one-hot), the position (one-hot), room for what heads move, and junk. There are no
norms; queries and keys are sharp, so that heads attend to one token. Heads and MLPs beside the circuit read everything
at random and write into junk.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from monosem.circuits import Circuit, Graph
from monosem.models import Model

V, N, JUNK = 12, 10, 6  # tokens, positions, numbers of junk
HEADS, WIDTH = 2, 12  # heads are as wide as the token's part
TOKEN, POSITION = slice(0, V), slice(V, V + N)
BEFORE, OUT = slice(V + N, 2 * V + N), slice(2 * V + N, 3 * V + N)
REST = slice(3 * V + N, 3 * V + N + JUNK)
D = 3 * V + N + JUNK
PAD = -D % (HEADS * WIDTH)  # d_model is heads x width in GPT-2
SHARP = 30.0


def _empty(layers: int) -> GPT2LMHeadModel:
    width = HEADS * WIDTH
    d = max(D, width)
    d += -d % HEADS
    config = GPT2Config(
        vocab_size=V, n_positions=N, n_embd=d, n_layer=layers, n_head=HEADS, n_inner=8, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval().requires_grad_(False).double()
    for parameter in hf.parameters():
        parameter.zero_()
    hf.transformer.wte.weight[:, TOKEN] = torch.eye(V).double()
    hf.transformer.wpe.weight[:, POSITION] = torch.eye(N).double()
    hf.lm_head.weight[:, OUT] = 4 * torch.eye(V).double()
    for block in hf.transformer.h:
        block.ln_1 = block.ln_2 = torch.nn.Identity()
    hf.transformer.ln_f = torch.nn.Identity()
    return hf


def _noise(hf: GPT2LMHeadModel, planted: set[tuple[int, int]]) -> None:
    """Everything that was not planted reads at random and writes into junk."""
    draw, dh = torch.Generator().manual_seed(0), hf.config.n_embd // HEADS
    for layer, block in enumerate(hf.transformer.h):
        block.mlp.c_fc.weight[:] = torch.randn(block.mlp.c_fc.weight.shape, generator=draw) / 4
        block.mlp.c_proj.weight[:, REST] = torch.randn(8, JUNK, generator=draw).double()
        for head in range(HEADS):
            if (layer, head) not in planted:
                for kind in range(3):
                    columns = slice(kind * hf.config.n_embd + head * dh, kind * hf.config.n_embd + (head + 1) * dh)
                    part = block.attn.c_attn.weight[:, columns]
                    part[:] = torch.randn(part.shape, generator=draw) / 4
                block.attn.c_proj.weight[head * dh : (head + 1) * dh, REST] = torch.randn(
                    dh, JUNK, generator=draw
                ).double()


def _head(hf: GPT2LMHeadModel, layer: int, head: int, q: torch.Tensor, k: torch.Tensor, v: slice, out: slice) -> None:
    """q, k: stream -> features; the head moves what it finds in `v` to `out`."""
    attn, d = hf.transformer.h[layer].attn, hf.config.n_embd
    dh = d // HEADS
    for kind, weight in enumerate((q * SHARP, k)):
        attn.c_attn.weight[:, kind * d + head * dh : kind * d + head * dh + weight.shape[1]] = weight.double()
    first = 2 * d + head * dh
    attn.c_attn.weight[v, first : first + V] = torch.eye(V).double()
    attn.c_proj.weight[head * dh : head * dh + V, out] = torch.eye(V).double()


def _reading(d: int, part: slice, matrix: torch.Tensor) -> torch.Tensor:
    weight = torch.zeros(d, matrix.shape[1])
    weight[part] = matrix
    return weight


def induction() -> tuple[Model, Circuit, list[list[int]], list[int]]:
    """... A B ... A -> B: head 1 of layer 0 moves each token one place on, head 0 of layer 1 looks for its own token
    there. Returns the model, its circuit, prompts and their answers."""
    hf = _empty(2)
    d = hf.config.n_embd
    _noise(hf, {(0, 1), (1, 0)})
    back = torch.eye(N).roll(-1, 1)[:, :N]  # a position's query is the key of the position before
    back[0] = torch.eye(N)[0]
    _head(hf, 0, 1, _reading(d, POSITION, back), _reading(d, POSITION, torch.eye(N)), TOKEN, BEFORE)
    _head(hf, 1, 0, _reading(d, TOKEN, torch.eye(V)), _reading(d, BEFORE, torch.eye(V)), TOKEN, OUT)
    model = Model(hf, name="induction")
    edges = ["input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->a1.h0<k>"]
    edges += ["input->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"]
    draw = torch.Generator().manual_seed(1)
    prompts, answers = [], []
    for _ in range(12):
        tokens = torch.randperm(V, generator=draw)[:7].tolist()
        prompts.append([*tokens, tokens[3]])
        answers.append(tokens[4])
    return model, Circuit.of(Graph.of(model), edges), prompts, answers


def copying() -> tuple[Model, Circuit, list[list[int]], list[int]]:
    """The first token is the answer: one head of layer 0 looks at position 0."""
    hf = _empty(2)
    d = hf.config.n_embd
    _noise(hf, {(0, 0)})
    first = torch.zeros(N, 1)
    first[0] = 1
    _head(hf, 0, 0, _reading(d, POSITION, torch.ones(N, 1)), _reading(d, POSITION, first), TOKEN, OUT)
    model = Model(hf, name="copying")
    edges = ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits"]
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randperm(V, generator=draw)[:8].tolist() for _ in range(12)]
    return model, Circuit.of(Graph.of(model), edges), prompts, [row[0] for row in prompts]
