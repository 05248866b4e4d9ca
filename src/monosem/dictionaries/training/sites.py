"""Sites as a config names them: one, or several in one line."""

import re

from ...activations.second import PREFIX, any_site
from ...errors import BadInput

_RANGE = re.compile(r"(?P<name>.*\D)?(?P<first>\d{1,4})-(?P<last>\d{1,4})")


def sites_named(text: str) -> list[str]:
    """ "resid_post.5,10-12" -> ["resid_post.5", "resid_post.10", "resid_post.11", "resid_post.12"]

    Layers without a name are of the site before them. `second:` stands before a site of the second model.

    Raises:
        UnknownName: what is no site. BadInput: one twice, or layers in falling order.
    """
    found: list[str] = []
    for part in text.replace(" ", "").split(","):
        whole = part if not part[:1].isdigit() or not found else f"{found[-1].rpartition('.')[0]}.{part}"
        layers = _RANGE.fullmatch(whole)
        if layers is None or not layers["name"]:
            found.append(str(any_site(whole)))
            continue
        first, last = int(layers["first"]), int(layers["last"])
        if last < first:
            raise BadInput(f"site {part!r} counts down; write {layers['name']}{last}-{first}")
        found += [str(any_site(f"{layers['name']}{layer}")) for layer in range(first, last + 1)]
    if twice := [site for site in found if found.count(site) > 1]:
        raise BadInput(f"site {text!r:.100} names {twice[0]} twice")
    return found


def of_second(sites: list[str]) -> list[str]:
    """The sites of the second model."""
    return [site for site in sites if site.startswith(PREFIX)]
