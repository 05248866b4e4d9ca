"""Where activations are read: at a site of the model, or at a site of a second model that reads the same tokens."""

from dataclasses import dataclass

from ..errors import BadInput, Mismatch
from ..models import Model, Site, SiteLike

PREFIX = "second:"


@dataclass(frozen=True, order=True)
class Second:
    """A site of the second model, written `second:resid_post.15`."""

    site: Site

    def __str__(self) -> str:
        return f"{PREFIX}{self.site}"


AnySite = Site | Second


def any_site(given: SiteLike | Second) -> AnySite:
    """A site of either model, in any spelling. Raises `UnknownName` for what is no site."""
    if isinstance(given, Second):
        return given
    if isinstance(given, str) and given.startswith(PREFIX):
        return Second(Site.parse(given.removeprefix(PREFIX)))
    return Site.parse(given)


def validated(model: Model, second: Model | None, given: SiteLike | Second) -> AnySite:
    """The site, where its model has it.

    Raises:
        UnknownName: its model does not have it. BadInput: it is of the second model, and there is only one.
    """
    site = any_site(given)
    if isinstance(site, Site):
        return model.site(site)
    if second is None:
        raise BadInput(f"{site} is of a second model, and there is only {model.name}; name the second one")
    return Second(second.site(site.site))


def check_pair(model: Model, second: Model, context: int) -> None:
    """Raises `Mismatch` unless both models read the same tokens, in windows of `context`."""
    vocabularies = [None if one.tokenizer is None else one.tokenizer.get_vocab() for one in (model, second)]
    if (model.cfg.d_vocab != second.cfg.d_vocab and None in vocabularies) or vocabularies[0] != vocabularies[1]:
        raise Mismatch(
            f"{model.name} and {second.name} have other tokens, and both have to read the same text token by token; "
            "take a second model with the tokenizer of the first"
        )
    if context > second.cfg.n_ctx:
        raise Mismatch(f"windows of {context} tokens are longer than the context of {second.name}, {second.cfg.n_ctx}")
