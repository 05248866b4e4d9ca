import pytest

from monosem.errors import UnknownName
from monosem.models import Site
from monosem.models.sites import GLOBAL, PER_LAYER, sites_of


@pytest.mark.parametrize(
    ("spelling", "site"),
    [
        ("resid_post.15", Site("resid_post", 15)),
        ("blocks.15.hook_resid_post", Site("resid_post", 15)),
        (("resid_post", 15), Site("resid_post", 15)),
        ("blocks.3.attn.hook_pattern", Site("pattern", 3)),
        ("blocks.3.attn.hook_attn_scores", Site("scores", 3)),
        ("blocks.0.mlp.hook_pre_linear", Site("mlp_pre_linear", 0)),
        ("blocks.4.hook_in", Site("resid_pre", 4)),
        ("blocks.4.attn.o.hook_in", Site("z", 4)),
        ("hook_embed", Site("embed")),
        (("pre", 2), Site("mlp_pre", 2)),
        ("logits", Site("logits")),
    ],
)
def test_spellings(spelling, site):
    assert Site.parse(spelling) == site


@pytest.mark.parametrize("name", PER_LAYER)
def test_every_site_survives_its_own_name_and_its_transformerlens_name(name):
    site = Site(name, 7)
    assert Site.parse(str(site)) == site
    assert Site.parse(site.hook_name) == site
    assert site.hook_name.startswith("blocks.7.")


@pytest.mark.parametrize("name", GLOBAL)
def test_sites_that_exist_once(name):
    assert Site.parse(name) == Site(name)
    assert Site.parse(Site(name).hook_name) == Site(name)


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        ("resid_pots.3", "did you mean 'resid_post'"),
        ("resid_post", "needs a layer"),
        ("logits.3", "exists once"),
        (15, "bare layer number"),
        ("", "unknown site"),
        ("nonsense", "known:"),
    ],
)
def test_unknown_sites_say_what_to_do(bad, hint):
    with pytest.raises(UnknownName) as error:
        Site.parse(bad)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pair_is_one_site_and_a_tuple_of_names_is_several():
    assert sites_of(("q", 3)) == [Site("q", 3)]
    assert sites_of(("q.3", "k.3")) == [Site("q", 3), Site("k", 3)]
    assert sites_of(()) == []
