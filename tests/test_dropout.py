"""Dropout as the CPU draws it, and attention that drops."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nasd.worker.model.attention import attend
from nasd.worker.model.layers import LOTS, Dropout, dropped, scale_of


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, LOTS))
@settings(max_examples=60, deadline=None)
def test_every_value_has_a_lot_of_its_own(rows: int, columns: int, lots: int) -> None:
    torch.manual_seed(3)
    gone = dropped(torch.empty(rows, columns), lots)
    assert gone.shape == (rows, columns)
    if lots in (0, LOTS):
        assert bool((gone == (lots == LOTS)).all())


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_asked_share_goes_and_the_mean_stays(share: float) -> None:
    torch.manual_seed(7)
    ones = torch.ones(1000, 1001)
    shown = Dropout(share).train()(ones)
    spread = (share * (1 - share) / ones.numel()) ** 0.5
    assert abs(float((shown == 0).double().mean()) - share) < 5 * spread + 1 / LOTS
    assert float(shown.max()) == pytest.approx(1 / (1 - share), rel=1e-4)
    assert float(shown.double().mean()) == pytest.approx(1.0, abs=5 * spread / (1 - share))


def test_neighbours_are_dropped_independently() -> None:
    """Four values share one draw of 64 bits."""
    torch.manual_seed(11)
    gone = dropped(torch.empty(4, 250_000).T, round(0.1 * LOTS)).reshape(-1, 4).double()
    together = (gone.T @ gone / len(gone)).triu(1)[torch.ones(4, 4).triu(1).bool()]
    assert torch.allclose(together, torch.full((6,), 0.01, dtype=torch.float64), atol=0.001)


def test_the_same_seed_drops_the_same_and_gradients_follow_what_stays() -> None:
    layer, states = Dropout(0.3).train(), torch.randn(5, 7, requires_grad=True)
    torch.manual_seed(1)
    one = layer(states)
    torch.manual_seed(1)
    other = layer(states)
    assert torch.equal(one, other)
    one.sum().backward()
    assert states.grad is not None
    kept = (one != 0).float()
    assert torch.allclose(states.grad, kept * scale_of(round(0.3 * LOTS)))


def test_all_or_nothing() -> None:
    states = torch.randn(3, 4)
    assert torch.equal(Dropout(1.0).train()(states), torch.zeros(3, 4))
    assert torch.equal(Dropout(0.0).train()(states), states)
    assert torch.equal(Dropout(0.5).eval()(states), states)


def _states(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(5)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=dtype, requires_grad=True) for n in (4, 6, 6))
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, :, :, 4:] = False
    return q, k, v, mask


def test_attention_that_hardly_ever_drops_is_torchs() -> None:
    """So small a share rounds to nothing dropped, and the spelled-out way has to give the same."""
    for masked in (True, False):
        q, k, v, mask = _states(torch.float64)
        ours = attend(q, k, v, mask if masked else None, 1e-9)
        ours.square().sum().backward()
        found = [states.grad for states in (q, k, v)]
        p, r, w, _ = _states(torch.float64)
        theirs = F.scaled_dot_product_attention(p, r, w, attn_mask=mask if masked else None)
        theirs.square().sum().backward()
        torch.testing.assert_close(ours, theirs)
        for mine, other in zip(found, (p, r, w), strict=True):
            torch.testing.assert_close(mine, other.grad)


def test_attention_drops_shares_of_attention() -> None:
    q, k, v, mask = _states(torch.float64)
    torch.manual_seed(9)
    found = attend(q, k, v, mask, 0.25)
    torch.manual_seed(9)
    lots = round(0.25 * LOTS)
    shares = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    kept = ~dropped(shares, lots) * scale_of(lots)
    torch.testing.assert_close(found, (shares * kept) @ v)


def test_attention_in_bfloat16_stays_near_float32() -> None:
    q, k, v, mask = _states(torch.float32)
    torch.manual_seed(2)
    exact = attend(q, k, v, mask, 0.1)
    torch.manual_seed(2)
    rough = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, 0.1)
    assert rough.dtype is torch.bfloat16
    assert torch.allclose(rough.float(), exact, atol=0.05)


@pytest.mark.parametrize("masked", [False, True])
def test_a_gradient_in_bfloat16_is_that_of_attention_in_float32(masked: bool) -> None:
    torch.manual_seed(23)
    mask = (torch.rand(2, 1, 1, 33) > 0.3).index_fill(3, torch.tensor([0]), True)
    halves = [torch.randn(2, 4, 33, 16).bfloat16().requires_grad_() for _ in range(3)]
    wholes = [one.detach().float().requires_grad_() for one in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(*halves, mask if masked else None, 0.0)
    exact = F.scaled_dot_product_attention(*wholes, attn_mask=mask if masked else None)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    found.float().square().sum().backward()
    exact.bfloat16().float().square().sum().backward()
    for half, whole in zip(halves, wholes, strict=True):
        assert half.grad is not None and whole.grad is not None
        assert torch.equal(half.grad, whole.grad.bfloat16())
