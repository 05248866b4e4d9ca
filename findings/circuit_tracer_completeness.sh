#!/usr/bin/env bash
# circuit-tracer 0.5.0 (torch 2.13.0, transformers 5.23.0): the completeness of an attribution graph, `compute_graph_scores`.
# One would guess: 0 for a graph in which the logit reads error nodes alone, as none of its inputs is explained (docstring: the
#   fraction of incoming edges that come from feature or token nodes, weighted by influence).
# What happens: 0.5. Nodes that nothing leads into count as fully explained, error nodes among them, with the influence that they
#   have on the logit. A logit of which share k comes straight from errors has 1 - k/2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 pydantic==2.12.4 numpy==2.3.5
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps circuit-tracer==0.5.0  # its models are not used
cd "$folder" && venv/bin/python -W ignore - <<'END'
from types import SimpleNamespace

import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph, compute_graph_scores
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

sizes = dict(n_layers=1, d_model=8, d_head=4, n_heads=2, d_mlp=16, d_vocab=10)
fields = sizes | dict.fromkeys(("tokenizer_name", "model_name", "original_architecture"), "none")


def scores(share):
    """One layer, one token, one logit: nodes are an error, the token and the logit, which reads this share from the error."""
    matrix = torch.zeros(3, 3)
    matrix[2, 0], matrix[2, 1] = share, 1 - share
    graph = Graph(
        input_string="a", input_tokens=torch.tensor([1]), active_features=torch.zeros(0, 3, dtype=torch.long),
        adjacency_matrix=matrix, cfg=UnifiedConfig(**fields),
        selected_features=torch.zeros(0, dtype=torch.long), activation_values=torch.zeros(0),
        logit_targets=[LogitTarget("b", 2)], logit_probabilities=torch.tensor([1.0]), scan="none", vocab_size=10,
    )
    return compute_graph_scores(graph)


for share in (1.0, 0.5, 0.0):
    replacement, completeness = scores(share)
    print(f"the logit reads {share:.0%} from the error: replacement {replacement:.2f}, completeness {completeness:.2f}")
    assert abs(replacement - (1 - share)) < 1e-6, "the finding is out of date"
    assert abs(completeness - (1 - share / 2)) < 1e-6, "the finding is out of date"
END
