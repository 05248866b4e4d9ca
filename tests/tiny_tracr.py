"""Programs that tracr compiled into weights (peers/tracr_golden.py), as GPT-2s without norms.

An edge is in the circuit where what the node can write meets what the slot can read, both by their weights, and it lies
on a path from the input to the program's answer.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from monosem.circuits import Circuit, Graph
from monosem.data import TokenPairs
from monosem.models import Model

FILE = Path(__file__).parent / "circuits" / "tracr.json"
PROGRAMS = ("proportion", "balance")


def compiled(name: str) -> tuple[TokenPairs, Circuit, Model, list[float]]:
    """Pairs, circuit, model and tracr's own answers. The logit of token 0 is the program's number, all others are 0."""
    held = json.loads(FILE.read_text(encoding="utf-8"))[name]
    weights = {key: torch.tensor(value, dtype=torch.float64) for key, value in held["weights"].items()}
    model = Model(_gpt2(held, weights), name=name)
    graph = Graph.of(model)
    every = list(zip(held["rows"], held["answers"]))
    chosen = [(row, answer) for row, answer in every if answer > 0.01]  # the metric is 0 where the number is
    rows, answers = [row for row, _ in chosen], [answer for _, answer in chosen]
    others = [next(row for row, answer in every[::-1] if abs(answer - own) > 0.1) for own in answers]
    sides = [model.tokens(torch.tensor(side), mask=torch.ones(len(side), len(side[0]))) for side in (rows, others)]
    pairs = TokenPairs(*sides, torch.zeros(len(rows)).long(), torch.ones(len(rows)).long())
    return pairs, _truth(graph, model.hf).pruned(), model, answers


def _gpt2(held: dict[str, Any], weights: dict[str, Tensor]) -> GPT2LMHeadModel:
    heads, key, d = held["heads"], held["key_size"], len(held["labels"])
    width = max(key, -(-d // heads))
    width += width % 2  # norms are read off in halves of the stream
    config = GPT2Config(
        vocab_size=len(held["tokens"]), n_positions=len(weights["pos_embed/embeddings"]), n_embd=heads * width,
        n_layer=held["layers"], n_head=heads, n_inner=weights["layer_0/mlp/linear_1/w"].shape[1],
        activation_function="relu", tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval().requires_grad_(False).double()
    for parameter in hf.parameters():
        parameter.zero_()
    hf.transformer.wte.weight[:, :d] = weights["token_embed/embeddings"]
    hf.transformer.wpe.weight[:, :d] = weights["pos_embed/embeddings"]
    hf.transformer.ln_f = torch.nn.Identity()
    output = next(at for at, label in enumerate(held["labels"]) if label.startswith(held["output"]))
    hf.lm_head.weight[0, output] = 1.0
    for layer, block in enumerate(hf.transformer.h):
        block.ln_1 = block.ln_2 = torch.nn.Identity()
        own = {key.removeprefix(f"layer_{layer}/"): value for key, value in weights.items()}
        for number, kind in enumerate(("query", "key", "value")):
            scale = (width / key) ** 0.5 if kind == "query" else 1.0  # scores are divided by the root of the width
            for head in range(heads):
                here = slice(number * heads * width + head * width, number * heads * width + head * width + key)
                there = slice(head * key, head * key + key)
                block.attn.c_attn.weight[:d, here] = own[f"attn/{kind}/w"][:, there] * scale
                block.attn.c_attn.bias[here] = own[f"attn/{kind}/b"][there] * scale
                if kind == "value":
                    block.attn.c_proj.weight[head * width : head * width + key, :d] = own["attn/linear/w"][there]
        block.attn.c_proj.bias[:d] = own["attn/linear/b"]
        block.mlp.c_fc.weight[:d], block.mlp.c_fc.bias[:] = own["mlp/linear_1/w"], own["mlp/linear_1/b"]
        block.mlp.c_proj.weight[:, :d], block.mlp.c_proj.bias[:d] = own["mlp/linear_2/w"], own["mlp/linear_2/b"]
    return hf


def _truth(graph: Graph, hf: GPT2LMHeadModel) -> Circuit:
    width, d = hf.config.n_embd // hf.config.n_head, hf.config.n_embd
    embedded = (hf.transformer.wte.weight.abs().sum(0) + hf.transformer.wpe.weight.abs().sum(0)) > 0
    writes, reads = {"input": embedded}, {"logits": hf.lm_head.weight.abs().sum(0) > 0}
    for layer, block in enumerate(hf.transformer.h):
        for head in range(hf.config.n_head):
            rows = slice(head * width, (head + 1) * width)
            writes[f"a{layer}.h{head}"] = block.attn.c_proj.weight[rows].abs().sum(0) > 0
            for number, kind in enumerate("qkv"):
                here = slice(number * d + rows.start, number * d + rows.stop)
                reads[f"a{layer}.h{head}<{kind}>"] = block.attn.c_attn.weight[:, here].abs().sum(1) > 0
        writes[f"m{layer}"] = block.mlp.c_proj.weight.abs().sum(0) > 0
        reads[f"m{layer}"] = block.mlp.c_fc.weight.abs().sum(1) > 0
    meets = torch.stack([torch.stack([(writes[u] & reads[v]).any() for v in graph.slots]) for u in graph.sources])
    return Circuit(graph, (meets & graph.real)[None])
