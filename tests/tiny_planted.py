"""Small GPT-2s with a circuit in their weights: what carries the answer is known, the rest writes where nobody reads.

The stream has parts: the token (one-hot), the position (one-hot), room for what heads move, and junk. There are no
norms; queries and keys are sharp, so that heads attend to one token. Heads and MLPs beside the circuit read everything
at random and write into junk.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from monosem.circuits import Circuit, Graph
from monosem.data import TokenPairs
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


def sorting() -> tuple[Model, Circuit, list[list[int]], list[int]]:
    """Numbers, a separator (0), and the first of them in order -> the next: a head looks for the smallest token above
    the last one."""
    hf = _empty(2)
    d = hf.config.n_embd
    _noise(hf, {(1, 1)})
    wanted = torch.full((V, V), -1.0)  # query token x key token: a larger token scores the higher the smaller it is
    for token in range(V):
        wanted[token, token + 1 :] = 1 - torch.arange(V - token - 1) / V
    _head(hf, 1, 1, _reading(d, TOKEN, wanted * 16), _reading(d, TOKEN, torch.eye(V)), TOKEN, OUT)
    model = Model(hf, name="sorting")
    edges = ["input->a1.h1<q>", "input->a1.h1<k>", "input->a1.h1<v>", "a1.h1->logits"]
    draw = torch.Generator().manual_seed(3)
    prompts, answers = [], []
    for number in range(12):
        some = (1 + torch.randperm(V - 1, generator=draw)[:4]).tolist()
        done = sorted(some)[: 1 + number % 3]
        row = [*some, 0, *done]
        prompts.append([0] * (8 - len(row)) + row)
        answers.append(sorted(some)[len(done)])
    return model, Circuit.of(Graph.of(model), edges), prompts, answers


def brackets() -> tuple[Model, Circuit, list[list[int]], list[int]]:
    """Opening (1) and closing (2) brackets among other tokens -> 3 where more open than close, 4 where more close: a
    head takes the mean of all tokens, an MLP reads its sign. The head's query and key are nothing, so that it looks at
    every token alike."""
    hf = _empty(2)
    _noise(hf, {(0, 1)})
    attn, d = hf.transformer.h[0].attn, hf.config.n_embd
    attn.c_attn.weight[1, 2 * d + d // HEADS] = 1.0  # values: +1 for an opening bracket, -1 for a closing one
    attn.c_attn.weight[2, 2 * d + d // HEADS] = -1.0
    attn.c_proj.weight[d // HEADS, BEFORE.start] = 1.0  # the mean goes where nothing else writes
    mlp = hf.transformer.h[1].mlp
    for parameter in mlp.parameters():
        parameter.zero_()
    for neuron, (sign, answer) in enumerate(((1, 3), (-1, 4))):
        mlp.c_fc.weight[BEFORE.start, neuron] = 20.0 * sign
        mlp.c_proj.weight[neuron, OUT.start + answer] = 1.0
    model = Model(hf, name="brackets")
    edges = ["input->a0.h1<v>", "a0.h1->m1", "m1->logits"]
    draw = torch.Generator().manual_seed(4)
    prompts, answers = [], []
    for number in range(12):
        many, few = (5, 2) if number % 2 else (4, 1)
        kinds = [1] * many + [2] * few if number % 3 else [2] * many + [1] * few
        row = [*kinds, *[5] * (8 - len(kinds))]
        prompts.append([row[at] for at in torch.randperm(8, generator=draw).tolist()])
        answers.append(3 if number % 3 else 4)
    return model, Circuit.of(Graph.of(model), edges), prompts, answers


PLANTED = {"copying": copying, "induction": induction, "sorting": sorting, "brackets": brackets}


def planted(name: str) -> tuple[TokenPairs, Circuit, Model]:
    """Pairs, the circuit and the model: clean prompts against random ones of the same length."""
    model, truth, prompts, answers = PLANTED[name]()
    draw = torch.Generator().manual_seed(5)
    others = [torch.randperm(V, generator=draw)[:8].tolist() for _ in prompts]
    wrong = [next(token for token in (*row[1:], 3, 4) if token != right) for row, right in zip(prompts, answers)]
    if name == "brackets":
        others = [[{1: 2, 2: 1}.get(token, token) for token in row] for row in prompts]
        wrong = [7 - right for right in answers]
    sides = [model.tokens(torch.tensor(side), mask=torch.ones(len(side), 8)) for side in (prompts, others)]
    return TokenPairs(*sides, torch.tensor(answers), torch.tensor(wrong)), truth, model
