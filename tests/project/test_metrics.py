"""Metrics against SciPy: to double precision where the model has it, to float32 elsewhere."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from monosem import metrics

DRAW = torch.Generator().manual_seed(3)
P, Q = (3 * torch.randn(6, 40, generator=DRAW, dtype=torch.float64) for _ in range(2))
RIGHT, WRONG = torch.arange(6), torch.arange(6) + 20
SETS = torch.stack([RIGHT, WRONG], -1)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_they_keep_the_precision_of_the_logits(dtype, error):
    p, q = P.to(dtype), Q.to(dtype)
    exact_p, exact_q = (log_softmax(one.double().numpy(), axis=-1) for one in (p, q))
    rows = np.arange(6)
    expected = {
        "kl": (np.exp(exact_p) * (exact_p - exact_q)).sum(-1),
        "cross_entropy": -exact_p[rows, RIGHT],
        "logit_diff": exact_p[rows, RIGHT] - exact_p[rows, WRONG],
        "set_log_probability": logsumexp(exact_p[rows[:, None], SETS], axis=-1),
    }
    found = {
        "kl": metrics.kl(p, q),
        "cross_entropy": metrics.cross_entropy(p, RIGHT),
        "logit_diff": metrics.logit_diff(p, RIGHT, WRONG),
        "set_log_probability": metrics.set_log_probability(p, SETS),
    }
    for name, values in found.items():
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        np.testing.assert_allclose(values.double().numpy(), expected[name], rtol=0, atol=error, err_msg=name)
