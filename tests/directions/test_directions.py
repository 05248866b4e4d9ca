import pytest
import torch
from safetensors.torch import save_file

from monosem import edits
from monosem.directions import Direction
from monosem.errors import BadFile, BadInput, Mismatch, UnknownName
from monosem.models import Site
from tiny_latents import MODEL, NEGATIVE, POSITIVE, SAE, SITE


def pooled_by_hand(prompts, pool):
    rows = []
    for prompt in prompts:
        run = MODEL.run([prompt], capture=SITE)
        rows.append(run[SITE][0, -1] if pool == "last" else run[SITE][0, 1:].mean(0))
    return torch.stack(rows).double()


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_difference_of_means(pool):
    found = Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE, at=pool)
    expected = pooled_by_hand(POSITIVE, pool).mean(0) - pooled_by_hand(NEGATIVE, pool).mean(0)
    torch.testing.assert_close(found.vector, expected.float(), rtol=1e-4, atol=1e-5)
    assert found.site == Site.parse(SITE)


def test_quality_tells_a_real_difference_from_none():
    real = Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE, at="mean").provenance
    mixed = POSITIVE[::2] + NEGATIVE[::2], POSITIVE[1::2] + NEGATIVE[1::2]
    none = Direction.fit(MODEL, *mixed, SITE, at="mean").provenance
    assert real["stability"] > none["stability"] + 0.3
    assert real["held_out_auroc"] > max(0.7, none["held_out_auroc"])


def test_adding_and_ablating_move_the_projection_as_told():
    found = Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE)
    clean = found.projection(MODEL.run(POSITIVE[:2], capture=SITE)[SITE])
    added = found.projection(MODEL.run(POSITIVE[:2], capture=SITE, edits=edits.add(found, 2.0))[SITE])
    torch.testing.assert_close(
        added - clean, torch.full_like(clean, 2 * float(found.vector.norm())), rtol=1e-4, atol=1e-4
    )
    gone = found.projection(MODEL.run(POSITIVE[:2], capture=SITE, edits=edits.ablate(found).at(everywhere=True))[SITE])
    assert gone.abs().max() < 1e-4


def test_a_latents_row_is_what_clamping_it_adds():
    row = Direction.of_latent(SAE, 5)
    assert torch.equal(row.vector, SAE.W_dec[5])
    one_more = MODEL.run(POSITIVE[:1], capture=SITE, edits=edits.add_latent(SAE, 5, 3.0, everywhere=True))[SITE]
    added = MODEL.run(POSITIVE[:1], capture=SITE, edits=edits.add(row, 3.0))[SITE]
    torch.testing.assert_close(one_more, added, rtol=1e-4, atol=1e-5)


def test_files(tmp_path):
    found = Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE)
    found.save(tmp_path / "d.safetensors")
    again = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(again.vector, found.vector)
    assert (again.site, again.model_name, again.provenance) == (found.site, found.model_name, found.provenance)
    assert again.cosine(found) == pytest.approx(1.0)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "d.safetensors").read_bytes()[:60])
    for bad in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(BadFile):
            Direction.load(tmp_path / bad)


def test_bad_input():
    with pytest.raises(BadInput, match="not zero"):
        Direction(torch.zeros(32), Site.parse(SITE))
    with pytest.raises(BadInput, match="finite"):
        Direction(torch.tensor([float("nan"), 1.0]), Site.parse(SITE))
    with pytest.raises(UnknownName, match="magic"):
        Direction.fit(MODEL, POSITIVE, NEGATIVE, SITE, method="magic")
    with pytest.raises(BadInput, match="of the stream"):
        Direction.fit(MODEL, POSITIVE, NEGATIVE, "q.1")
    with pytest.raises(BadInput, match="at least two"):
        Direction.fit(MODEL, POSITIVE[:1], NEGATIVE, SITE)
    with pytest.raises(Mismatch, match="another"):
        Direction(torch.ones(32), Site.parse(SITE), "another").check(MODEL)
    with pytest.raises(Mismatch, match="8 entries"):
        Direction(torch.ones(8), Site.parse(SITE)).check(MODEL)


def test_a_provenance_that_is_nested_without_end_is_refused(tmp_path):
    about = {"kind": "monosem directions 1", "directions": "[" * 100_000}
    save_file({"vector": torch.ones(3)}, tmp_path / "direction", about)
    with pytest.raises(BadFile, match="does not hold directions"):
        Direction.load(tmp_path / "direction")
