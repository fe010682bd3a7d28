r"""Grades ex01_rewards.py. Verdicts are what a careful person would say."""

import torch

from grading import Case, check


def test_extract_answer(solution):
    check(solution, "extract_answer", [Case((text,), wanted, why) for text, wanted, why in (
        ("9 * 2 = 18\n#### 18", "18", "the plain case"),
        ("#### 5\nNo, wait.\n#### 18", "18", "the last marker counts"),
        ("#### 18\nI hope that this helps with your 20 questions", "18", "the answer ends with its line"),
        ("####   18  ", "18", "without the spaces around it"),
        ("#### -7", "-7", "a minus sign belongs to the answer"),
        ("#### 3/4", "3/4", "all of the text counts"),
        ("It is 18.", None, "no marker, no answer"),
        ("So 18.\n####", None, "nothing stands behind the marker"),
        ("<think>\n#### 18\n</think>\nI do not know.", None, "what stands before </think> does not count"),
        ("<think>\n#### 5\n</think>\n#### 18", "18", "what stands before </think> does not count"),
        ("#### 18 or 20", None, "two answers are none"),
        ("", None, "an empty response has no answer"),
    )])


def test_is_equivalent(solution):
    check(solution, "is_equivalent", [Case((answer, gold), wanted, why) for answer, gold, wanted, why in (
        ("18", "18", True, "the plain case"),
        ("18.", "18", True, "a final point"),
        ("18.00", "18", True, "trailing zeros"),
        ("$18", "18", True, "a currency sign"),
        (" 18 ", "18", True, "spaces"),
        ("1,000", "1000", True, "a comma between thousands"),
        ("$1,000.00", "1000", True, "all at once"),
        ("3/4", "0.75", True, "a fraction"),
        ("7", "-7", False, "a minus sign belongs to the number"),
        ("0.333", "1/3", False, "numbers are exact, without a tolerance"),
        ("18", "118", False, "18 is only part of 118"),
        ("1.8", "18", False, "a decimal point is no decoration"),
        ("2**3", "8", False, "nothing is computed"),
        ("90 - 40", "90", False, "a calculation is not cut in the middle"),
        ("", "18", False, "an empty text equals nothing"),
        ("", "", False, "an empty text equals nothing"),
        ("Paris", "Paris", True, "text equals the same text"),
        ("cat", "dog", False, "two texts without a number"),
        ("1/0", "0", False, "a zero denominator is no number, and must not raise"),
    )])


def test_math_reward(solution):
    check(solution, "math_reward", [Case((text, "18", bonus), wanted, why) for text, bonus, wanted, why in (
        ("#### 18", 0.1, 1.0, "right, in the form asked for"),
        ("#### 18.00", 0.1, 1.0, "right"),
        ("#### 20", 0.1, 0.1, "wrong, but readable"),
        ("#### 20", 0.0, 0.0, "wrong, no bonus"),
        ("It is 18.", 0.1, 0.0, "nothing that can be read"),
        ("#### 18 or 20", 0.1, 0.0, "two answers cannot be read as one"),
    )] + [Case(("#### 20", "18", bonus), ValueError, "a bonus outside [0, 1) must be refused with ValueError")
          for bonus in (1.0, -0.1)])


def test_length_reward(solution):
    check(solution, "length_reward", [Case((torch.tensor(correct), torch.tensor(lengths), size), torch.tensor(wanted),
                                           why) for correct, lengths, size, wanted, why in (
        ([1, 1, 0], [10, 20, 30], 3, [0.5, 0.0, -0.5], "the worked number"),
        ([0, 1, 1], [10, 20, 30], 3, [0.0, 0.0, -0.5], "a short wrong answer gains nothing"),
        ([1, 1, 1, 0], [10, 20, 100, 300], 2, [0.5, -0.5, 0.5, -0.5], "two groups"),
        ([1, 0], [12, 12], 2, [0.0, 0.0], "equal lengths"),
    )])
