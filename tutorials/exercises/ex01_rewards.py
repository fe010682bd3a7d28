r"""Exercise 1: verifiable rewards. Tutorial 1; Kimi k1.5 (arXiv 2501.12599), section 2.3.

The policy is trained against your grader, so whatever it reads too kindly the policy will find. Standard library and
torch; no eval, as the text comes from a model. Grade with `pytest tutorials/exercises/test_ex01_rewards.py`.
"""
import torch


def extract_answer(response):
    r"""The final answer in a response, or None.

    response: str -> str or None.
    The text after the LAST "####", to the end of its line, without spaces around it. What stands before the last
    "</think>" does not count. None: no marker, nothing behind it, or two answers joined by "or".

    Worked: "#### 5\nNo, wait.\n#### 18\nDone." gives "18"; "It is 18." gives None; "#### 18 or 20" gives None.
    Level: easy.
    """
    raise NotImplementedError


def is_equivalent(answer, gold):
    r"""Do two final answers mean the same number?

    answer, gold: str -> bool. Never raises, whatever the text.
    Read as numbers, exactly: "18", "18.", "18.00", "$18" and " 18 " are equal, and so are "1,000" and "1000", "3/4"
    and "0.75". Not equal: "-7" and "7", "0.333" and "1/3", "" and anything (even ""), "18" and "118". Text that is no
    number equals the same text only; capitals may count or not. Nothing is computed, "2**3" is not "8", and nothing is
    cut: "90 - 40" is not "90".

    Worked: is_equivalent("$1,000.00", "1000") is True; is_equivalent("0.333", "1/3") is False.
    Level: medium.
    """
    raise NotImplementedError


def math_reward(response, gold, format_bonus=0.0):
    r"""1.0 for a right answer, format_bonus for a wrong one that can be read, else 0.0.

    response, gold: str; format_bonus: float in [0, 1) -> float.
    A right answer gets 1.0 and nothing on top. A response without a readable answer gets 0.0.
    Raises ValueError for a bonus outside [0, 1): a wrong answer must never come up to a right one.

    Worked, with bonus 0.1: "#### 18" against "18" gives 1.0; against "20" gives 0.1; "It is 18." gives 0.0.
    `from reward_math import extract_answer as read, is_equivalent as equal` lets you do this one first.
    Level: easy.
    """
    raise NotImplementedError


def length_reward(correct, lengths, group_size):
    r"""Kimi k1.5's reward for being short, to be added to the rewards (arXiv 2501.12599, section 2.3).

        lambda = 0.5 - (len - min) / (max - min)      min and max over the response's own group
        lambda where right;  min(0, lambda) where wrong;  0 where all lengths of the group are equal

    correct [N] (1 right, 0 wrong), lengths [N] in tokens, group after group, N = prompts * group_size -> [N] float.

    Worked: lengths [10, 20, 30], correct [1, 1, 0], one group of 3: [0.5, 0, -0.5]. With correct [0, 1, 1]:
    [0, 0, -0.5], as a short wrong answer gains nothing.
    Level: medium.
    """
    raise NotImplementedError
