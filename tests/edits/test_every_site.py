"""Every writable site × scope × narrowing × family: generation with the KV cache equals whole passes without it, row by
row and unpadded, in which the same tokens are named by their positions."""

from itertools import product

import pytest
import torch

from monosem import edits
from monosem.models import Model, Moment, Site
from monosem.models.places.sites import GLOBAL, GLOBAL_ON_REQUEST, ON_REQUEST, PER_LAYER, READ_ONLY
from tiny import FAMILIES, tiny_hf

ROWS = [[7, 11, 23], [5, 61, 8, 30, 44, 17, 92]]
STEPS = 5  # past the sliding windows of 8
LAYERS = (1, 2)  # of which one has full attention and the other a sliding window, in families that mix them
SCOPES = ("all", "prompt", "generated")
NARROWINGS = ("none", "positions", "rows", "heads", "gate")
CASES = list(product(SCOPES, NARROWINGS))
GROUPS = 4  # sites of one group are edited together


def writable(model: Model) -> list[Site]:
    layered = [Site(name, layer) for layer in LAYERS for name in (*PER_LAYER, *ON_REQUEST)]
    sites = [*layered, *(Site(name) for name in (*GLOBAL, *GLOBAL_ON_REQUEST))]
    return [site for site in sites if site.name not in READ_ONLY and model.has(site)]


def case(site: Site, number: int, family: int) -> tuple[str, str]:
    """Another scope and narrowing at each site, and at each family; 7 and 15 share no factor."""
    scope, narrowing = CASES[(7 * number + 2 * family) % len(CASES)]
    return scope, "none" if narrowing == "heads" and site.head_axis is None else narrowing


def even(x: torch.Tensor, moment: Moment) -> torch.Tensor:
    return moment.positions % 2 == 0


class Recorder:
    """Notes the logits of the last token of every pass."""

    site = Site("logits")

    def __init__(self):
        self.seen = []

    def apply(self, x, moment):
        self.seen.append(x[:, -1].clone())
        return x, True


def changed(site: Site, number: int) -> edits.Edit:
    """A change by position, so that a token that is taken for another one shows."""
    if number % 2:
        return edits.scale(site, 0.6)

    def fn(x: torch.Tensor, moment: Moment) -> torch.Tensor:
        factor = 0.6 + 0.05 * moment.positions
        shape = [len(factor), *[1] * (site.query_axis - 1), factor.shape[1], *[1] * (x.ndim - site.query_axis - 1)]
        return x * factor.reshape(shape)

    return edits.Edit(site, fn, "by position")


def in_generation(edit: edits.Edit, scope: str, narrowing: str) -> edits.Edit:
    narrowed = {
        "none": edit,
        "positions": edit.at(positions=slice(1, 5)),
        "rows": edit.at(rows=[1]),
        "heads": edit.at(heads=1) if edit.site.head_axis is not None else edit,
        "gate": edit.when(even),
    }
    return narrowed[narrowing].at(scope=scope)


def in_whole_pass(
    edit: edits.Edit, scope: str, narrowing: str, row: int, length: int, prompt: int
) -> edits.Edit | None:
    """The same for one row in a run over `length` tokens, of which none counts as generated; None: none is meant."""
    positions = {"all": range(length), "prompt": range(prompt), "generated": range(prompt, length)}[scope]
    if narrowing == "positions":
        positions = [position for position in positions if 1 <= position < 5]
    if (narrowing == "rows" and row == 0) or not positions:
        return None
    edit = edit.at(positions=list(positions))
    if narrowing == "heads":
        return edit.at(heads=1)
    return edit.when(even) if narrowing == "gate" else edit


@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_whole_passes(family, group):
    model, number = Model(tiny_hf(family), None, family), list(FAMILIES).index(family)
    chosen = [
        (changed(site, i), *case(site, i, number)) for i, site in enumerate(writable(model)) if i % GROUPS == group
    ]
    cached = Recorder()
    given = [in_generation(*one) for one in chosen]
    made = model.generate(ROWS, edits=[*given, cached], max_new_tokens=STEPS, stop_at_eos=False)
    for row, (prompt, new) in enumerate(zip(ROWS, made.new)):
        ids = list(prompt)
        for step in range(STEPS):
            whole = Recorder()
            here = [in_whole_pass(*one, row, len(ids), len(prompt)) for one in chosen]
            logits = model.run([ids], edits=[*(edit for edit in here if edit is not None), whole]).logits[0, -1]
            scale = float(logits.abs().max())
            torch.testing.assert_close(cached.seen[step][row], whole.seen[0][0], rtol=1e-3, atol=1e-4 * scale)
            ids.append(int(logits.argmax()))
        assert new == ids[len(prompt) :]


def test_every_site_scope_and_narrowing_occurs():
    seen = set()
    for number, family in enumerate(FAMILIES):
        for i, site in enumerate(writable(Model(tiny_hf(family), None, family))):
            seen.add((site.name, *case(site, i, number)))
    few = {name for name in {site for site, *_ in seen} if name.startswith(("expert", "shared_"))} | {"pos_embed"}
    for name in {site for site, *_ in seen} - few:  # which few families have
        assert {scope for site, scope, _ in seen if site == name} == set(SCOPES), name
        kinds = set(NARROWINGS) - ({"heads"} if Site(name, 1).head_axis is None else set())
        assert {narrowing for site, _, narrowing in seen if site == name} == kinds, name
