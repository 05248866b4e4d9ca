"""The calls of SAELens's tutorials on the same weights, once through SAELens and once with the import changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lens import BRIDGE, IDS, lens
from monosem.saelens import SAE
from sae_peers import REASON, random_
from tiny import tiny_model

pytestmark = pytest.mark.skipif(BRIDGE, reason="SAELens 6.54 needs TransformerLens before 4")
HOOK, LATENT = "blocks.1.hook_resid_post", 5
INSIDE = f"{HOOK}.hook_sae_acts_post"
KINDS: dict[str, dict[str, Any]] = {"standard": {}, "topk": {"k": 4}, "jumprelu": {}, "gated": {}}


def ablate(acts: Tensor, hook: Any) -> Tensor:
    acts[:, 1:, ::2] = 0.0
    return acts


def session(model: Any, sae: Any) -> dict[str, Any]:
    """What a first session computes."""
    found: dict[str, Any] = {"clean": model(IDS), "loss": model(IDS, return_type="loss")}
    found |= {"name": sae.cfg.metadata.hook_name, "sizes": (sae.cfg.d_in, sae.cfg.d_sae)}
    _, cache = model.run_with_cache(IDS)
    acts = sae.encode(cache[HOOK])
    found |= {"acts": acts, "recons": sae.decode(acts), "forward": sae(cache[HOOK])}
    found["spliced"] = model.run_with_saes(IDS, saes=[sae])
    found["one"] = model.run_with_saes(IDS, saes=sae, return_type="loss")
    found["error"] = model.run_with_saes(IDS, saes=[sae], use_error_term=True)
    _, cache = model.run_with_cache_with_saes(IDS, saes=[sae])
    found |= {name: cache[f"{HOOK}.{name}"] for name in ("hook_sae_input", "hook_sae_acts_post", "hook_sae_recons")}
    found["names"] = {"blocks.0.hook_resid_pre", INSIDE} <= set(cache.keys())
    found["ablated"] = model.run_with_hooks_with_saes(IDS, saes=[sae], fwd_hooks=[(INSIDE, ablate)])
    with model.saes(saes=[sae]):
        found["within"] = model(IDS)
        found["hooked within"] = model.run_with_hooks(IDS, fwd_hooks=[(INSIDE, ablate)])
    with model.saes(saes=[sae], use_error_term=True):
        found["ablated, with its error"] = model.run_with_hooks(IDS, fwd_hooks=[(INSIDE, ablate)])
    sae.use_error_term = True
    found["error of its own"] = model.run_with_saes(IDS, saes=[sae])
    sae.use_error_term = False
    with model.hooks(fwd_hooks=[(HOOK, lambda x, hook: x + 3 * sae.W_dec[LATENT])]):
        found["steered"] = model(IDS)
    model.reset_saes()
    return found | {"after": model(IDS), "unembedded": sae.W_dec[LATENT] @ model.W_U}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_session_with_the_import_changed(family: str, kind: str, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason=REASON)
    registry = pytest.importorskip("sae_lens.registry", reason=REASON)
    sae_class, config = registry.get_sae_class(kind)
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=HOOK, model_name=family)
    random_(sae_class(config(d_in=32, d_sae=48, metadata=metadata, **KINDS[kind]))).save_model(str(tmp_path))
    made = lens(family)
    theirs = sae_lens.HookedSAETransformer(made.cfg, made.tokenizer)
    theirs.load_state_dict(made.state_dict())
    with torch.no_grad():
        expected = session(theirs, sae_lens.SAE.load_from_disk(str(tmp_path)))
        ours = SAE.load_from_disk(tmp_path)
        found = session(tiny_model(family), ours)
    assert ours.cfg.architecture() == ("jumprelu" if kind == "gated" else kind)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            size = float(value.abs().max())
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4 * size, msg=f"{name} differs")
        else:
            assert found[name] == value, name
    assert not torch.allclose(expected["spliced"], expected["ablated"], atol=1e-3)
