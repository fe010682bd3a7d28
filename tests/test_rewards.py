r"""rewards.py: penalties by hand, what a short wrong answer gains, which groups are kept."""

import pytest
import torch

import rewards
from rewards import length_reward, mixed_groups, overlong_penalty


def test_overlong_penalty():
    lengths = torch.tensor([0, 1, 80, 81, 85, 90, 100, 130])
    assert overlong_penalty(lengths, 100, 20).tolist() == pytest.approx([0, 0, 0, -0.05, -0.25, -0.5, -1, -1])
    for buffer in (0, -1, 101):
        with pytest.raises(ValueError, match="buffer must be positive and at most max_new_tokens = 100"):
            overlong_penalty(lengths, 100, buffer)


def test_half_the_penalty_has_the_proportion_of_dapo():
    r"""DAPO adds it to 1 and -1; with 1 and 0, half as far apart, half of it is the same reward up to a constant."""
    lengths, correct = torch.tensor([10, 85, 100, 10, 85, 100]), torch.tensor([1, 1, 1, 0, 0, 0])
    penalty = overlong_penalty(lengths, 100, 20)
    here, dapo = correct + penalty / 2, 2 * correct - 1 + penalty
    torch.testing.assert_close(2 * here - 1, dapo)
    whole = correct + penalty
    assert here[2] > here[3] and whole[2] == whole[3]  # right at the limit against wrong and short


def test_length_reward():
    r"""A short wrong answer gains nothing; equal lengths give 0; groups do not mix (k1.5, section 2.3)."""
    correct = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0, 1])
    lengths = torch.tensor([10, 20, 30, 40, 20, 30, 7, 7, 7])
    assert length_reward(correct, lengths, 3).tolist() == pytest.approx([0.5, 0, -0.5, -0.5, 0, 0, 0, 0, 0])
    assert length_reward(torch.tensor([False, True]), torch.tensor([5, 9]), 2).tolist() == [0, -0.5]
    # It never turns the order round: the worst right answer stays at 1 - 0.5, the best wrong one at 0.
    assert length_reward(correct.bool(), lengths, 9).abs().max() <= 0.5


def test_mixed_groups():
    assert mixed_groups(torch.tensor([1, 0, 0, 0, 1, 1]), 2).tolist() == [True, True, False, False, False, False]
    assert mixed_groups(torch.tensor([0.0, 0.0, 0.0, 1.0]), 4).all()
    assert not mixed_groups(torch.tensor([True, False]), 1).any()  # a group of one is never mixed
    assert mixed_groups(torch.tensor([True, True, False]), 3).dtype == torch.bool


@pytest.mark.parametrize("call, message", [
    (lambda x: mixed_groups(x, 2), "multiple of group_size"),
    (lambda x: mixed_groups(x[None], 3), "multiple of group_size"),
    (lambda x: length_reward(x, x, 2), "multiple of group_size"),
    (lambda x: length_reward(x[:2], x, 3), "multiple of group_size"),
])
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(torch.ones(3))
    assert "\n" not in str(error.value)


def test_demonstration(capsys):
    rewards.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["100", "yes", "-1.00", "0.00", "0.00", "0.50", "0.50"] in rows
    assert ["20", "no", "0.00", "-1.00", "0.00", "0.00", "0.00"] in rows
    assert [row[-1] for row in rows[-3:]] == ["dropped", "kept", "dropped"]
