r"""Grades ex01_rewards.py. Verdicts are what a careful person would say."""

import torch

from grading import Case, check


def test_extract_answer(solution):
    check(solution, "extract_answer", [Case((text,), wanted, why) for text, wanted, why in (
        ("9 * 2 = 18\n#### 18", "18", "the plain case"),
        ("#### 5\nNo, wait.\n#### 18\nDone.", "18", "the last marker counts"),
        ("#### 5\n#### 6\n#### 7", "7", "the last marker counts"),
        ("#### 18\nI hope that this helps with your 20 questions", "18", "the answer ends with its line"),
        ("####   18  ", "18", "without the spaces around it"),
        ("####18", "18", "a space after the marker is not needed"),
        ("#### -7", "-7", "a minus sign belongs to the answer"),
        ("#### 3/4", "3/4", "all of the text counts"),
        ("#### 2 dozen eggs", "2 dozen eggs", "all of the text counts"),
        ("It is 18.", None, "no marker, no answer"),
        ("So 18.\n####", None, "nothing stands behind the marker"),
        ("#### 5\n####  ", None, "nothing stands behind the last marker"),
        ("<think>\n#### 18\n</think>\nI do not know.", None, "what stands before </think> does not count"),
        ("<think>\n#### 5\n</think>\n#### 18", "18", "what stands behind </think> counts"),
        ("#### 18 or 20", None, "two answers are none"),
        ("#### 5 or 6\n#### 7", "7", "an earlier hedge does not count"),
        ("#### orange", "orange", "no two answers: or is part of a word"),
        ("", None, "an empty response has no answer"),
        ("5 or 6?\n#### 6 or 5\nNo.\n#### 7", "7", "an earlier hedge does not count"),
        ("It is 5 or 6.\n#### 7", "7", "an earlier hedge does not count"),
        ("<think>\n</think>\n#### 5\n</think>\nI do not know.", None, "only the LAST </think> ends the thoughts"),
        ("a\n</think>\n#### 5\n</think>\nNo.", None, "only the LAST </think> ends the thoughts"),
        ("#### 1,000", "1,000", "the text as it stands, with its commas and signs"),
        ("#### $1,234.50", "$1,234.50", "the text as it stands, with its commas and signs"),
    )])


def test_is_equivalent(solution):
    check(solution, "is_equivalent", [Case((answer, gold), wanted, why) for answer, gold, wanted, why in (
        ("18", "18", True, "the plain case"),
        ("18.", "18", True, "a final point"),
        ("18.00", "18", True, "trailing zeros"),
        ("$18", "18", True, "a currency sign"),
        ("18", "$18", True, "a currency sign"),
        (" 18 ", "18", True, "spaces"),
        ("1,000", "1000", True, "a comma between thousands"),
        ("1000", "1,000", True, "a comma between thousands"),
        ("$1,000.00", "1000", True, "all at once"),
        ("3/4", "0.75", True, "a fraction"),
        ("-0.75", "-3/4", True, "a fraction"),
        ("7", "-7", False, "a minus sign belongs to the number"),
        ("-7", "7", False, "a minus sign belongs to the number"),
        ("0.333", "1/3", False, "numbers are exact, without a tolerance"),
        ("0.3333333333333333333", "1/3", False, "numbers are exact, also beyond the digits of a float"),
        ("18", "118", False, "18 is only part of 118"),
        ("1.8", "18", False, "a decimal point is no decoration"),
        ("18.9", "18", False, "digits behind the point count"),
        ("2**3", "8", False, "nothing is computed"),
        ("90 - 40", "90", False, "a calculation is not cut in the middle"),
        ("", "18", False, "an empty text equals nothing"),
        ("", "", False, "an empty text equals nothing"),
        ("Paris", "Paris", True, "text equals the same text"),
        (".5", "0.5", True, "a point at the beginning"),
        ("5", ".5", False, "a point at the beginning"),
        ("cat", "dog", False, "two different texts without a number"),
        ("cat4", "dog4", False, "two different texts with the same digits"),
        ("4 cats", "4 dogs", False, "two different texts with the same digits"),
        ("1/0", "0", False, "a zero denominator is no number, and must not raise"),
        ("1/0", "2/0", False, "two different texts that are no numbers"),
    )])


def test_math_reward(solution):
    check(solution, "math_reward", [Case((text, gold, bonus), wanted, why) for text, gold, bonus, wanted, why in (
        ("#### 18", "18", 0.1, 1.0, "right, in the form asked for"),
        ("#### 18.00", "18", 0.1, 1.0, "right, but written in another way"),
        ("#### $1,000", "1000", 0.25, 1.0, "right, but written in another way"),
        ("#### 18", "18", 0.0, 1.0, "right, no bonus"),
        ("#### 18", "20", 0.1, 0.1, "wrong, but readable"),
        ("#### 20", "18", 0.25, 0.25, "wrong, but readable"),
        ("#### 20", "18", 0.0, 0.0, "wrong, no bonus"),
        ("It is 18.", "18", 0.1, 0.0, "nothing that can be read"),
        ("#### 18 or 20", "18", 0.1, 0.0, "two answers cannot be read as one"),
    )] + [Case((text, "18", bonus), ValueError, f"a bonus of {bonus}, outside [0, 1), must be refused with ValueError, "
               "whatever the response", extra=True)
          for text in ("#### 20", "#### 18", "It is 18.") for bonus in (1.0, 1.5, -0.1)])


def test_length_reward(solution):
    correct = [1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0]
    lengths = [10, 14, 30, 25, 60, 100, 110, 80, 7, 8, 9, 27]
    lam = [0.5, 0.3, -0.5, -0.25, 0.5, -0.3, -0.5, 0.1, 0.5, 0.45, 0.4, -0.5]
    right = [float(x) for x in correct]
    terms = {"lambda where right": [c * x for c, x in zip(right, lam)], "1 where right": right,
             "len/max where right": [c * n / m for c, n, m in zip(right, lengths, [30] * 4 + [110] * 4 + [27] * 4)],
             "lambda where wrong": [(1 - c) * x for c, x in zip(right, lam)], "1 where wrong": [1 - c for c in right],
             "min(0, lambda) where wrong": [(1 - c) * min(0, x) for c, x in zip(right, lam)]}
    terms = {name: torch.tensor(x, dtype=torch.float64) for name, x in terms.items()}
    six = [(5, 1), (9, 0), (7, 1), (20, 0), (30, 1), (40, 1), (12, 1), (11, 0), (18, 0), (8, 1), (6, 1), (4, 1),
           (50, 0), (60, 1), (80, 1), (33, 0), (44, 0), (22, 0)]  # six groups of 3: lengths, right or not
    spread, events = [], []
    for i, (n, right_one) in enumerate(six):
        group = six[i // 3 * 3:i // 3 * 3 + 3]
        low, high = min(group), max(group)
        x = 0.5 - (n - low[0]) / (high[0] - low[0])
        spread.append(x if right_one else min(0.0, x))
        events.append(f"a {'right' if right_one else 'wrong'} answer stands in a group whose shortest is "
                      f"{'right' if low[1] else 'wrong'}")
    check(solution, "length_reward", [Case((torch.tensor(correct), torch.tensor(lengths), size), torch.tensor(wanted),
                                           why, **more) for correct, lengths, size, wanted, why, more in (
        ([1, 1, 0], [10, 20, 30], 3, [0.5, 0.0, -0.5], "the worked number", {}),
        ([0, 1, 1], [10, 20, 30], 3, [0.0, 0.0, -0.5], "the worked number, a short wrong answer", {}),
        (correct, lengths, 4, [x if c else min(0.0, x) for c, x in zip(correct, lam)], "three groups of 4",
         dict(terms=terms, unit=4)),
        ([c for _, c in six], [n for n, _ in six], 3, spread, "six groups of 3", dict(unit=3, events=events)),
        ([1, 0, 1, 1], [12, 12, 20, 21], 2, [0.0, 0.0, 0.5, -0.5], "where all lengths of a group are equal it is not 0",
         dict(extra=True)),
    )])
