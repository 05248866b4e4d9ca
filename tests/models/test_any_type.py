"""Every causal type of the installed transformers on a tiny random model: read and right, or refused, as the page says.

What is compared with is transformers alone: its logits, and its passes over all tokens.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from anymodel import TYPES, tiny_any
from monosem import edits, lenses
from monosem.components import direct_attribution
from monosem.errors import BadInput, MonosemError
from monosem.models import InferredFamily, Model, load_model, verify

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# no tiny model of these runs on token ids alone
NO_TEXT = {"gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody"}
_PARTS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:3]
READ, REFUSED = ([kind for kind in re.findall(r"^\| (\S+) \|", part, re.M) if kind != "type"] for part in _PARTS)
# Zamba 2 clamps time steps from below in its scan and not in the step of a single token
CHANGES = {"zamba2": {"time_step_min": 1e-12}}
IDS = [[11, 42, 7, 93, 28, 60, 35], [5, 77, 31, 14, 88, 9, 52]]

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="the list is one release's: older ones lack types"
)


def loaded(kind: str) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferredFamily)
        return load_model(tiny_any(kind, **CHANGES.get(kind, {})), quiet=True)


def test_the_page_has_every_type():
    assert sorted([*READ, *REFUSED]) == sorted(TYPES)


@pytest.mark.parametrize("kind", READ)
def test_a_type_that_is_read(kind):
    model = loaded(kind)
    failed = verify(model).table.query("not ok")
    assert failed.empty, failed.to_string()
    ids = torch.tensor(IDS)
    native = model.hf(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(model.run(IDS).logits, native, rtol=1e-3, atol=1e-4)
    if not model.looks_ahead:
        check_generation(model)
    check_sums(model)


def check_generation(model: Model) -> None:
    """With an edit: as whole passes with a hook that doubles the output of block 1 at each pass."""

    def doubled(module: Any, args: Any, output: Any) -> Any:
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    made = model.generate(IDS, edits=edits.scale("resid_post.1", 2.0), max_new_tokens=3, stop_at_eos=False)
    ids, handle = torch.tensor(IDS), model.blocks[1].register_forward_hook(doubled)
    try:
        for step in range(3):
            logits = model.hf(input_ids=ids, use_cache=False).logits[:, -1]
            new = torch.tensor([row[step] for row in made.new])
            # of two tokens with almost one logit either may be chosen
            torch.testing.assert_close(logits.gather(1, new[:, None])[:, 0], logits.max(1).values, rtol=1e-3, atol=1e-3)
            ids = torch.cat([ids, new[:, None]], 1)
    finally:
        handle.remove()


def check_sums(model: Model) -> None:
    """What the branches write adds up to a logit difference of transformers' own; the lens reads the last stream so."""
    native = model.hf(input_ids=torch.tensor(IDS), use_cache=False).logits[:, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if model.anatomy[0].closed or model.streams > 1 or model.family.head:
            with pytest.raises(MonosemError, match="norm|streams|head"):  # streams or logits that are not sums
                direct_attribution(model, IDS, tokens=20, wrong=21, by="layer")
        elif model.family.logit_steps == ():
            shares = direct_attribution(model, IDS, tokens=20, wrong=21, by="layer").values.sum(-1)[:, -1]
            torch.testing.assert_close(shares, native[:, 20] - native[:, 21], rtol=1e-2, atol=1e-3)
        if model.streams > 1:
            with pytest.raises(BadInput, match="streams"):
                lenses.logit(model, IDS)
        else:
            likeliest = lenses.logit(model, IDS).top_probabilities[-1, :, -1, 0]
            torch.testing.assert_close(likeliest, native.softmax(-1).amax(-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind not in NO_TEXT])
def test_a_type_that_is_refused_says_why(kind):
    with pytest.raises(MonosemError) as error:
        loaded(kind)
    assert "\n" not in str(error.value)
