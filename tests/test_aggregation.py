r"""aggregation.py: each mode against its coefficient, microbatches against the whole, and what padding may hold."""

import pytest
import torch

from aggregation import aggregate, main

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
F64 = torch.float64
LENGTHS = torch.tensor([2, 5, 1, 4, 3, 5])
MASK = torch.arange(5) < LENGTHS[:, None]  # [6, 5]
MAX_NEW_TOKENS = 7


def random_losses(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(0))


def coefficients(mode, lengths=LENGTHS):
    r"""c_i from the definition."""
    n = len(lengths)
    return {"token-mean": [1 / int(lengths.sum())] * n, "seq-mean-token-mean": [1 / (n * int(t)) for t in lengths],
            "seq-mean-token-sum": [1 / n] * n, "seq-mean-token-sum-norm": [1 / (n * MAX_NEW_TOKENS)] * n}[mode]


def test_numbers_in_the_docstring():
    losses, mask = torch.tensor([[1.0, 1, 0], [1, 2, 3]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert [aggregate(losses, mask, mode, max_new_tokens=4).item() for mode in MODES] == pytest.approx([1.6, 1.5, 4, 1])


@pytest.mark.parametrize("mode", MODES)
def test_one_coefficient_per_response(mode):
    losses = random_losses(6, 5).requires_grad_()
    value = aggregate(losses, MASK, mode, max_new_tokens=MAX_NEW_TOKENS)
    c = torch.tensor(coefficients(mode), dtype=F64)
    torch.testing.assert_close(value, (c * (losses * MASK).sum(dim=1)).sum(), rtol=1e-14, atol=0)
    value.backward()
    torch.testing.assert_close(losses.grad, c[:, None] * MASK, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_response_events(mode):
    losses = random_losses(6).requires_grad_()
    value = aggregate(losses, MASK, mode, max_new_tokens=MAX_NEW_TOKENS)
    value.backward()
    c = torch.tensor(coefficients(mode), dtype=F64)
    torch.testing.assert_close(value, (c * losses).sum(), rtol=1e-14, atol=0)
    torch.testing.assert_close(losses.grad, c, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_microbatches_add_up_to_the_whole(mode):
    r"""Pitfall 12. With global counts any cut gives the whole batch's value and gradient."""
    counts = dict(num_responses=6, num_tokens=LENGTHS.sum(), max_new_tokens=MAX_NEW_TOKENS)
    for losses in (random_losses(6, 5), random_losses(6)):
        whole = losses.clone().requires_grad_()
        value = aggregate(whole, MASK, mode, max_new_tokens=MAX_NEW_TOKENS)
        value.backward()
        for cut in ([1, 5], [2, 1, 3], [1] * 6):
            parts = losses.clone().requires_grad_()
            total = sum(aggregate(part, mask, mode, **counts) for part, mask in zip(parts.split(cut), MASK.split(cut)))
            total.backward()
            torch.testing.assert_close(total, value, rtol=1e-13, atol=0)
            torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-13, atol=0)


def test_a_mean_of_microbatch_means_is_another_number():
    losses = random_losses(6, 5)
    whole = aggregate(losses, MASK, "token-mean")
    means = sum(aggregate(part, mask, "token-mean") for part, mask in zip(losses.split(1), MASK.split(1))) / 6
    assert abs(means - whole) > 0.01


def test_dr_grpo_does_not_know_the_response_length():
    r"""Pitfall 14. A token weighs the same in a short and in a long response, and in every batch."""
    losses = torch.zeros(6, 5, dtype=F64, requires_grad=True)
    aggregate(losses, MASK, "seq-mean-token-sum-norm", max_new_tokens=7).backward()
    assert losses.grad[MASK].unique().tolist() == [1 / 42]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf")])
def test_padding_reaches_neither_value_nor_gradient(mode, garbage):
    clean = random_losses(6, 5)
    losses = torch.where(MASK, clean, garbage).requires_grad_()
    value = aggregate(losses, MASK, mode, max_new_tokens=MAX_NEW_TOKENS)
    value.backward()
    assert value == aggregate(clean, MASK, mode, max_new_tokens=MAX_NEW_TOKENS)
    assert losses.grad.isfinite().all() and (losses.grad[~MASK] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_gradient_through_a_loss_with_exp_when_padding_is_finite(mode):
    log_probs = torch.where(MASK, random_losses(6, 5), 0.0).requires_grad_()
    aggregate(-log_probs.exp(), MASK, mode, max_new_tokens=MAX_NEW_TOKENS).backward()
    assert log_probs.grad.isfinite().all() and (log_probs.grad[~MASK] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_empty_responses_and_batches(mode):
    r"""Pitfall 1. A response without tokens contributes nothing, and nothing divides by zero."""
    mask = torch.tensor([[True, True], [False, False]])
    for losses in (torch.tensor([[1.0, 2.0], [float("nan"), 7.0]]), torch.tensor([3.0, float("nan")])):
        losses.requires_grad_()
        value = aggregate(losses, mask, mode, max_new_tokens=2)
        value.backward()
        expected = {"token-mean": 3 / 2, "seq-mean-token-mean": 3 / 4, "seq-mean-token-sum": 3 / 2}
        assert value.item() == pytest.approx(expected.get(mode, 3 / 4))
        assert losses.grad[1].count_nonzero() == 0 and losses.grad.isfinite().all()
    assert aggregate(torch.ones(2, 3), torch.zeros(2, 3), mode, max_new_tokens=2) == 0
    assert aggregate(torch.ones(0, 3), torch.zeros(0, 3), mode, max_new_tokens=2) == 0


@pytest.mark.parametrize("dtype, out", [(torch.float16, torch.float32), (torch.bfloat16, torch.float32),
                                        (torch.float32, torch.float32), (F64, F64)])
def test_dtypes(dtype, out):
    losses = torch.full((1, 4096), 20.0, dtype=dtype)  # in half precision the sum overflows or sticks
    mask = torch.ones(1, 4096, dtype=torch.long)
    value = aggregate(losses, mask, "seq-mean-token-sum")
    assert value.dtype == out and value.item() == 81920
    third = torch.full((3, 1), 1 / 3, dtype=dtype)
    if dtype == F64:  # the division does not pass through float32
        assert aggregate(third, torch.ones(3, 1), "token-mean").item() == pytest.approx(1 / 3, rel=1e-15)


@pytest.mark.parametrize("losses, mask, mode, more, message", [
    ((2, 3), (2, 3), "mean", {}, "unknown mode 'mean': use token-mean"),
    ((2, 3), (2, 3), "seq-mean-token-sum-norm", {}, "give max_new_tokens >= 1"),
    ((2, 3), (2, 3), "seq-mean-token-sum-norm", dict(max_new_tokens=0), "give max_new_tokens >= 1"),
    ((2, 3), (2, 4), "token-mean", {}, r"got \(2, 3\) and \(2, 4\)"),
    ((3,), (2, 3), "token-mean", {}, r"got \(3,\) and \(2, 3\)"),
    ((2,), (2,), "token-mean", {}, r"got \(2,\) and \(2,\)"),
])
def test_bad_input_is_one_clear_line(losses, mask, mode, more, message):
    with pytest.raises(ValueError, match=message) as error:
        aggregate(torch.zeros(losses), torch.ones(mask), mode, **more)
    assert "\n" not in str(error.value)


def test_demonstration(capsys):
    main()
    out = capsys.readouterr().out.splitlines()
    rows = [line.split()[1:] for line in out if line.startswith(MODES)]
    assert len(rows) == 8
    for whole, parts, wrong in rows[4:]:
        assert whole == parts != wrong
