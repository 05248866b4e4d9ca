"""Probes that read every token, on texts where it is known which tokens tell."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from monosem.errors import BadInput
from monosem.probes import KINDS, Rows, fit, pooling


def passages(seed, n=80, pos=30):
    """A passage of three tokens tells the positive texts; where it stands is random, and lengths differ."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2 == 0
    lengths = torch.randint(8, pos + 1, (n,), generator=draw)
    x = torch.randn(1, n, pos, 6, generator=draw)
    for row in range(n):
        if y[row]:
            at = int(torch.randint(0, int(lengths[row]) - 3, (1,), generator=draw))
            x[0, row, at : at + 3, 2] += 4
    mask = torch.arange(pos) < lengths[:, None]
    x[0, ~mask] = 1000.0  # padding, which nobody may read
    return Rows(x, y, mask=mask)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.tokens])
def test_probes_of_whole_texts_find_a_passage_and_skip_padding(kind):
    train, validation, held = passages(0), passages(1), passages(2)
    found = fit(train, validation, kind=kind)
    assert roc_auc_score(held.y.numpy(), found.score(held)[0].numpy()) > 0.9
    other = Rows(held.x.masked_fill(~held.mask[None, ..., None], -7.0), held.y, mask=held.mask)
    torch.testing.assert_close(found.score(other), found.score(held))
    row, short = 3, int(held.mask[3].sum())
    alone = Rows(held.x[:, [row], :short], held.y[[row]], mask=held.mask[[row], :short])
    torch.testing.assert_close(found.score(alone)[0], found.score(held)[0, [row]])


def test_a_rolling_probe_is_attention_of_every_window():
    rows = passages(0, n=6, pos=12)
    found = fit(passages(1), passages(2), kind="rolling", window=4)
    parts = {name: value for name, value in found.parts.items() if name != "window"}
    for row in range(6):
        length, said = int(rows.mask[row].sum()), []
        for end in range(1, length + 1):
            x = rows.x[:, [row], max(0, end - 4) : end]
            said.append(float(pooling.attention_score(parts, x, torch.ones(x.shape[1:3]).bool())))
        assert found.score(rows)[0, row].item() == pytest.approx(max(said))


def area(kind, make, **own):
    held = make(2)
    found = fit(make(0), make(1), kind=kind, **own)
    return roc_auc_score(held.y.numpy(), found.score(held)[0].numpy())


def texts(seed, tell, n=120, pos=18, d=5):
    """Texts of standard normal tokens of different lengths, into which `tell` writes what tells them apart."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2 == 0
    lengths = torch.randint(9, pos + 1, (n,), generator=draw)
    x = 0.5 * torch.randn(1, n, pos, d, generator=draw)
    for row in range(n):
        tell(x[0, row, : int(lengths[row])], bool(y[row]), draw)
    return Rows(x, y, mask=torch.arange(pos) < lengths[:, None])


def last_ones_tell(x, positive, draw):
    """The same loud tokens everywhere, up and down; only those of the last two follow the label."""
    x[:, 1] += 3 * torch.randint(-1, 2, (len(x),), generator=draw)
    x[-2:, 1] = 3.0 if positive else -3.0


def signs_agree(x, positive, draw):
    """One token has two loud numbers: of one sign in positive texts, of two in the others."""
    at = int(torch.randint(0, len(x), (1,), generator=draw))
    sign = 1 if torch.rand(1, generator=draw) < 0.5 else -1
    x[at, 1], x[at, 2] = 4.0 * sign, 4.0 * (sign if positive else -sign)


def loud_behind_the_gate(x, positive, draw):
    """Two loud tokens, up and down, of which one stands behind a gate: the label is the sign of that one."""
    one, other = torch.randperm(len(x), generator=draw)[:2].tolist()
    x[one, 1], x[one, 2] = (3.0 if positive else -3.0), 3.0
    x[other, 1], x[other, 2] = (-3.0 if positive else 3.0), -3.0


def test_a_positional_probe_reads_the_end_where_content_does_not_say_which_token_counts():
    assert area("positional", lambda seed: texts(seed, last_ones_tell)) > 0.95
    assert area("attention", lambda seed: texts(seed, last_ones_tell)) < 0.9


def test_through_a_hidden_layer_two_numbers_of_a_token_tell_together():
    assert area("soft_attention", lambda seed: texts(seed, signs_agree)) > 0.9
    means = []
    for seed in range(3):
        rows = texts(seed, signs_agree)
        weights = rows.mask[None, ..., None] / rows.mask.sum(1)[:, None, None]
        means.append(Rows((rows.x * weights).sum(2), rows.y))
    found = fit(means[0], means[1])
    assert roc_auc_score(means[2].y.numpy(), found.score(means[2])[0].numpy()) < 0.65  # the mean of tokens cannot tell


def test_a_gated_probe_hears_the_token_behind_the_gate():
    assert area("gated_bipolar", lambda seed: texts(seed, loud_behind_the_gate)) > 0.95


def by_hand(kind, p, tokens):
    """The score of the tokens (a NumPy matrix) of one text from the parts of a probe."""
    z = (tokens - p["mean"]) / p["scale"] / np.sqrt(tokens.shape[1])
    h = np.maximum(z @ p["u"].T + p["c"], 0) if "u" in p else z
    total = float(p["bias"])
    for k in range(len(p["v"])):
        said = h @ p["v"][k]
        if kind == "gated_bipolar":
            said = said * np.log1p(np.exp(h @ p["w"][k] + p["s"][k]))
            total += p["up"][k] * said.max() - p["down"][k] * said.min()
            continue
        a = h @ p["q"][k]
        if kind == "positional":
            a = a - p["slope"][k] * np.arange(len(tokens))[::-1] / 10  # from the end: the same
        a = np.exp(a - a.max())
        total += (a / a.sum()) @ said
    return total


@pytest.mark.parametrize("kind", ["attention", "positional", "soft_attention", "gated_bipolar"])
def test_scores_are_those_of_the_formula_text_by_text(kind):
    rows = texts(5, loud_behind_the_gate, n=20)
    rows.mask[3, 4:6] = False  # an outlier within a text does not count, and has no place in it
    own = {"arms" if kind == "gated_bipolar" else "heads": 3}
    found = fit(passages(1), passages(2), kind=kind, **own)
    x = torch.cat([rows.x, rows.x[..., :1]], -1)
    said = found.score(Rows(x, rows.y, places=found.places, mask=rows.mask))[0]
    p = {name: value[0].numpy() for name, value in found.parts.items()}
    assert len(p["v"]) == 3
    if kind == "positional":
        assert np.abs(p["slope"]).min() > 0.01
    for row in (0, 3, 8):
        assert said[row].item() == pytest.approx(by_hand(kind, p, x[0, row, rows.mask[row]].double().numpy()))


def test_sizes_that_are_none_are_refused():
    for kind, own in [("soft_attention", {"heads": 0}), ("gated_bipolar", {"hidden": 1}), ("positional", {"heads": 0})]:
        with pytest.raises(BadInput, match="1 or more"):
            fit(passages(0, 12), passages(1, 12), kind=kind, **own)
