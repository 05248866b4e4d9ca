#!/usr/bin/env bash
# circuit-tracer 0.5.0: the ids of nodes in the JSON that its page and Neuronpedia read.
# One would guess: an id names one node of a graph; links and pins name their nodes by it.
# What happens: the error node of layer L at token T and feature L of layer 0 at token T both have the id `0_L_T`. A graph with
#   both has two nodes of one id, and a link with it does not say which of them it belongs to.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydantic==2.12.4
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps circuit-tracer==0.5.0  # its models are not used
cd "$folder" && venv/bin/python -W ignore - <<'END'
from circuit_tracer.frontend.graph_models import Node

layers, features, tokens = 4, 6, 3
error = Node.error_node(layer=2, pos=1)
feature = Node.feature_node(layer=0, pos=1, feat_idx=2)
print(f"error of layer 2 at token 1: {error.node_id!r}; feature 2 of layer 0 at token 1: {feature.node_id!r}")
assert error.node_id == feature.node_id == "0_2_1", "the finding is out of date"

ids = [Node.error_node(layer, pos).node_id for layer in range(layers) for pos in range(tokens)]
ids += [
    Node.feature_node(layer, pos, number).node_id
    for layer in range(layers) for pos in range(tokens) for number in range(features)
]
print(f"{layers} layers of {features} features, {tokens} tokens: {len(ids)} nodes, {len(set(ids))} ids")
assert len(ids) - len(set(ids)) == layers * tokens, "the finding is out of date"
END
