r"""Is this answer right? The reward of reinforcement learning with verifiable rewards, for math word problems.

What it teaches: a verifier is a small, strict reader. The policy is trained against it, so whatever it reads too kindly
the policy will find: a hedge ("18 or 20"), a -7 read as 7, an empty answer accepted as part of any text. Three steps:

    places        where the answer stands: "#### 18", else "\boxed{18}", else "The answer is 18." or "Answer: 18"
    plain text    LaTeX, Unicode and Markdown in one form: "\dfrac34" and "¾" become "3/4"
    equivalence   numbers as exact fractions; tuples and intervals item by item; all else as a normalised string

Decisions where a careful reader could waver:
- A place that holds nothing usable is no answer; the search does not fall back on the next kind of place. One
  exception: a line such as "#### Step 1: compute" is a Markdown heading when it holds no answer and a place follows.
- Several answers in one place are no answer. `verify` still accepts them whole against a gold that is that same list.
- What follows "because", "so", "which" or ", not" is an explanation: in "18, because 20 - 2 = 18" the answer is 18.
- 50% equals 50 and 1/2, as data sets write both; but 50 is not 1/2, and 50% is not 0.5%.
- Words around a number are its label and its unit ("Total: 18 apples") and count only if both sides have them: "18
  apples" is 18, "5 hours" is not "5 minutes". Words that change the value ("at least 18", "18 or more") make it no
  number. A lone letter is a variable unless it is a known unit: 18x is not 18.
- Nothing is computed: 2^3 is not 8. Powers of ten are part of how a number is written: 1.5 \times 10^3.
- Only a closed </think> hides text: what stands in a <think> that is never closed counts.

It never raises and never hangs: the search for the place takes linear time, an answer has at most 1,000 characters and
a power of ten at most 400 zeros. No eval, no sympy, no signals, no state: it works in threads.

`python reward_math.py` prints tricky responses, what is extracted from each, and the verdict.
"""

import re
import unicodedata
from collections import deque
from fractions import Fraction
from typing import NamedTuple

LONGEST_ANSWER = 1000  # characters; anything longer is no answer (and int() refuses more than 4,300 digits)
LARGEST_POWER = 400  # of ten; 10**999999999 would never end

# --- 1. Places: where the answer stands ------------------------------------------------------------------------------

_LINE = re.compile(r"[^\r\n]*")
_HEADING = re.compile(r"""[\s*_]* (?: [^\W\d_]{2,}\ \d{1,2}[.):].*    # Step 1: 9 * 2
    | (?:\d{1,2}[.):]\s*)? [*_]{0,3} [^\W\d_]{2,} (?:\ \d{1,2}\b)? [^\d\\$]* )   # Solution; 2. Add""", re.VERBOSE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ is no brace
_BETWEEN_BOXES = re.compile(r"[ \t${}\\(),;&~]*(?:(?:text)?\{? ?(?:or|and)\b)?[ \t${}\\(),;&~]*")
_PHRASES = (  # each begins with a rare character, so that long texts are scanned quickly
    re.compile(r"""[nN](?:swer|SWER)(?<=(?<![^\W_])[Aa].{5})(?:\s{1,9}(?i:is)\b|[\s*_`"')]{0,9}[:：])"""),
    re.compile(r"[\r\n][ \t>*_-]{0,6}[Aa][*_]{0,3}[ \t]?[:：]"))
_PHRASE_GAP = re.compile(r"(?:[\s:：*_`$]|\\\[|\\\()*")  # "The answer is:\n\n$$18$$" goes on after the blank line
_SENTENCE_END = re.compile(r"""[\r\n。]
    | (?<!\bRs) (?: (?<!\.)\.(?!\.) | (?<![!?])[!?]+ )     # not in "..." nor after Rs
      (?= [\s*_`"'”’)\]}$<] | \\[\])] | [A-Z][a-z] | $ )   # not in 3.5, .5 or p.m.
      (?!\s*=)                                            # not in 5! = 120""", re.VERBOSE)
_TAG = re.compile(r"<<[^<>]*>>|</?\|?[A-Za-z_]+\|?>")  # GSM8K's calculator notes, </s>, <|im_end|>
_EXPLANATION = re.compile(r"""(?<!\s) (?: (?:[,;]?\s+\(?|\() (?:because|since|so|which|rather\ than|instead\ of)\b
                               | [,;(]\s*(?:not|as)\b
                               | \s+\([\d\s.,$]*[*×+=/][^()A-Za-z]*\) )  # 18 (9 * 2)""", re.VERBOSE | re.I)


def _find(text):
    r"""The text in the highest place: None where there is no place at all, "" where the place holds no answer."""
    text = text[text.rfind("</think>") + 8:] if "</think>" in text else text
    at = text.rfind("####")
    if at < 0:
        return _find_box_or_phrase(text)
    line = _LINE.match(text, at + 4, at + 6 + LONGEST_ANSWER).group()
    before = text[max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1:at].rstrip("#")
    if "####" in before:
        return ""  # two on a line
    inner = _find_box_or_phrase(line)  # "#### \boxed{18}", "#### Final answer: 18"
    if not inner and not before.strip(" \t>*-") and _HEADING.fullmatch(line):
        later = _find_box_or_phrase(text[at + 4:])
        if later is not None:
            return later
    return _trim(line) if inner is None else inner


def _find_box_or_phrase(text):
    r"""The last \boxed{...}; where there is none, the sentence after the last "answer is", "Answer:" or line "A:"."""
    at = max(text.rfind("\\boxed{"), text.rfind("\\boxed {"))
    if at >= 0:
        content, _ = _read_box(text, at)
        previous = text.rfind("\\boxed{", 0, at)
        if previous >= 0:  # "\boxed{5} or \boxed{6}" is one place with two answers; otherwise the last box counts
            other, end = _read_box(text, previous)
            if end <= at <= end + 40 and other != content and _BETWEEN_BOXES.fullmatch(text[end:at]):
                return ""
        return content
    text = "\n" + text  # so that its first line begins like any other
    for start in (max(0, len(text) - 4096), 0):  # the end first: a long text full of phrases is not walked through
        ends = [match.end() for phrase in _PHRASES for match in deque(phrase.finditer(text, start), maxlen=1)]
        if ends:
            gap = _PHRASE_GAP.match(text, max(ends), max(ends) + LONGEST_ANSWER)
            return _trim(_SENTENCE_END.split(text[gap.end():gap.end() + LONGEST_ANSWER + 2], maxsplit=1)[0])
    return None


def _read_box(text, at):
    r"""The content of the box at `at`, its braces balanced by counting, and where the box ends."""
    depth, opening = 0, text.index("{", at)
    for brace in _BRACE.finditer(text, opening, opening + LONGEST_ANSWER + 2):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            content = text[opening + 1:brace.start()].strip()
            return content if _says_something(content) else "", brace.end()
    return "", opening  # never closed


def _trim(text):
    r"""A line or a sentence without what surrounds its answer: tags, an explanation, Markdown, final punctuation."""
    if len(text) > LONGEST_ANSWER:
        return ""
    text = _TAG.sub(" ", text) if "<" in text else text
    explanation = _EXPLANATION.search(text)
    if explanation and re.search(r"\d", text[:explanation.start()]):
        text = text[:explanation.start()]
    text = text.strip(" \t\f*_`\"'“”$").rstrip(".,;:!?。 *_`\"'$").lstrip(": *_")
    text = text[1:-1].strip() if text[:1] == "<" and text[-1:] == ">" else text  # a template's <answer>, filled in
    return text if _says_something(text) else ""


def _says_something(text):
    return text.isalnum() or bool(re.search(r"[^\W_]|[∞∅]", text))


# --- 2. Plain text: one form for LaTeX, Unicode and Markdown ---------------------------------------------------------

_SYMBOLS = r"""\times * \cdot * \pi π \infty ∞ \emptyset ∅ \varnothing ∅ \pm ± \circ ° \degree ° \cup ∪ \cap ∩ \in =
    \le ≤ \leq ≤ \ge ≥ \geq ≥ \ne ≠ \neq ≠ \approx ≈ \{ ⦃ \} ⦄ \lbrace ⦃ \rbrace ⦄ \% % \& & \pounds £ \euro €
    \dfrac \frac \tfrac \frac \cfrac \frac""".split()  # x \in [0, 1] names a set as x = 5 names a number
_COMMANDS = {
    **dict(zip(_SYMBOLS[::2], _SYMBOLS[1::2])),
    **dict.fromkeys(r"\! \left \right \big \Big \bigl \bigr \Bigl \Bigr \displaystyle \bf \rm \it".split(), ""),
    **dict.fromkeys(r"\, \; \: \quad \qquad \( \) \[ \] \$".split() + ["\\ "], " "),
    **dict.fromkeys(r"\textbf \textit \textrm \mathrm \mathbf \mathit \mathsf \mathbb \mathcal \mbox \operatorname "
                    r"\boldsymbol \bm \underline \boxed \fbox".split(), r"\text"),
}
_CHARACTERS = str.maketrans("−‐‑‒–—―⁄∕×·⋅∙•’‘′“”″∈", "-------//*****'''\"\"\"=")
_CURRENCY = re.compile(r"(?:\b(?:US|CA|AU|NZ|HK))?[$£€¥₹₩₽¢]|\b(?:USD|EUR|GBP|INR|Rs\.?)\s*(?=[-+.\d])"
                       r"|(?<=\d)\s?(?:USD|dollars?)\b", re.I)
_ARGUMENT = r"\s*(?:\{([^{}]*)\}|([^\s{}\\]))"  # of a command: a group with no group in it, or one character
_FRAC, _SQRT = re.compile(r"\\frac" + _ARGUMENT * 2), re.compile(r"\\sqrt" + _ARGUMENT)
_TEXT, _GROUP = re.compile(r"\\text\s*\{([^{}]*)\}"), re.compile(r"([\^_]\s*|(?<![A-Za-z\]}\s])|^)\{([^{}]*)\}")


def _bracket(text, simple):
    r"""Brackets around a numerator, a root or an exponent, unless it is simple enough to read without them."""
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text or "")
    return text if re.fullmatch(simple, text) else f"({text})"


def _plain(text):
    r"""One form for all ways to write a thing: "\$1{,}234" -> "1,234", "1\frac12" -> "1 1/2", "**10⁻³**" -> "10^-3"."""
    if text.isalnum() and text.isascii():
        return text
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda m: "^" + m.group(), text)  # 10³ is 10^3, never 103
        text = re.sub("[¼-¾⅐-⅞↉]", lambda m: " " + m.group(), text)  # 1½ is 1 1/2, never 11/2
        text = unicodedata.normalize("NFKC", _CURRENCY.sub(" ", text)).translate(_CHARACTERS)[:LONGEST_ANSWER]
        # Invisible marks vanish; emoji and lone surrogates become spaces; digits of every script become 0 to 9.
        drop = {"Cf": "", "So": " ", "Cs": " ", "Co": " "}
        text = "".join(str(unicodedata.decimal(character)) if character.isdecimal()
                       else drop.get(unicodedata.category(character), character) for character in text)
    if "\\" in text or "{" in text:
        text = re.sub(r"\\(?:[A-Za-z]+|.)", lambda m: _COMMANDS.get(m.group(), m.group()), text.replace("{,}", ","))
        text = re.sub(r"^\s*\{([^{}]*,[^{}]*)\}\s*$", r"⦃\1⦄", text)  # a set written without backslashes
        text = re.sub(r"\^\s*\{?\s*°\s*\}?|°", " ", text)
        for _ in range(20):  # from the innermost group outwards
            before = text
            text = _TEXT.sub(r" \1 ", text)
            text = _SQRT.sub(r"√(\1\2)", text)
            text = _FRAC.sub(lambda m: " " + _bracket(m[1] or m[2], r"[-+]?[\w.,]*(√\(\w+\))?") + "/"
                             + _bracket(m[3] or m[4], r"[-+]?[\d.,]+|√\(\w+\)|\w"), text)
            text = _GROUP.sub(lambda m: m[1] + _bracket(m[2], r"-?\d+|\w" if m[1] else r"[^+*/-]*|-?\d+"), text)
            if text == before or "{" not in text and "\\" not in text:
                break
    text = re.sub(r"(?<![\w)])\*\*|\*\*(?![\w(])", "", text).replace("**", "^")  # bold, or a power between operands
    text = _CURRENCY.sub(" ", text.replace("~", " ").replace("\0", " ")).strip(" \t\r\n\f*_`")
    return re.sub(r"\s*\^\s*", "^", re.sub(r"\s{2,}", "  ", text))


# --- 3. Numbers: a small grammar -------------------------------------------------------------------------------------
#   answer    [name "=" | sum "="] [label] number [scale] ["%"] [unit]      x = 18, Total: 18 apples, 2 million
#   number    [sign] (whole n/d | decimal/decimal | [decimal "*"] 10^k | decimal ["e" k])
#   decimal   digits, plain or in threes (1,234 and 1 234, not 1,23), with or without a fraction: 18. 18.00 .5

_DECIMAL = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|[1-9]\d{0,2}(?:\ \d{3})+(?!\d|\s*/)|\d+)(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"""(?<![\w.^/)\]√])
    (?P<sign>[-+]\s*|(?:negative|minus)\s+)?
    (?: (?P<whole>\d+)\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)
      | (?P<numerator>{_DECIMAL})\s*/\s*(?P<denominator>[-+]?{_DECIMAL})
      | (?:(?P<mantissa>{_DECIMAL})\s*[*x]\s*)?10\^\(?(?P<power>[-+]?\d+)\)?
      | (?P<decimal>{_DECIMAL})(?:e(?P<exponent>[-+]?\d+))? )(?!\d)""", re.VERBOSE | re.I)
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion)s?\b|(k|K|M|B|bn)\b")
_ZEROS = {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "m": 6, "billion": 9, "b": 9, "bn": 9, "trillion": 12}
_PERCENT = re.compile(r"\s*(?:%|per\s?cent\b)", re.I)
_WORD = re.compile(r"[^\W\d_]+")
_NAME = re.compile(r"(?:[^\W\d]|(?<=[\w(])\d|[\s()+,'|∠:=\\])+")  # x, f(2), a + b, \angle ABC; not 2x, not x^2
_SUM = re.compile(r"(?:[\d\s.,+*/()^%-]|(?<=\d )x(?= \d))+")
_SHORT_UNITS = set("m g s h l L W V N J K C F km cm mm nm kg mg ml mL dl ft in yd mi lb oz hr am pm AM PM th st nd rd "
                   "sq cu of is he to lbs hrs min sec mph kph mpg kWh USD EUR GBP yrs".split())
_CHANGES_VALUE = set("or not never than least most half quarter third twice double triple between squared cubed root "
                     "plus minus pi sqrt log ln sin cos tan exp mod factorial over under step part case".split())


class _Number(NamedTuple):
    value: Fraction
    percent: bool = False
    label: str = ""  # the words before it
    initials: frozenset = frozenset()  # first letters of all words around it


def _number(text):
    r"""Reads plain text as one number, else None: "2 million people" -> 2,000,000; "18 + 2", "18x", "18 20" -> None."""
    if text.isdecimal():
        return _Number(Fraction(int(text)))
    name, equals, rest = text.rpartition("=") if "=" in text else text.rpartition("≈")
    if equals and _SUM.fullmatch(rest) and not _NUMBER.fullmatch(rest.strip()):
        name, rest = rest, name  # 18 = 9 * 2
    if name.strip() and not _NAME.fullmatch(name) and not (equals == "=" and _SUM.fullmatch(name)):
        return None
    rest = re.sub(r"^\s*\(?[A-H]\)\s*(?=\S)", "", rest)  # the letter of a choice: "(C) 18"
    match = _NUMBER.search(rest)
    if not match or (value := _value(match)) is None:
        return None
    before, after = rest[:match.start()], rest[match.end():]
    while scale := _SCALE.match(after):
        value, after = value * 10 ** _ZEROS[(scale[1] or scale[2]).casefold()], after[scale.end():]
    percent = _PERCENT.match(after)
    after = after[percent.end():] if percent else after
    if not (_is_label(before) and _is_unit(after)) or before.strip() and match["sign"] in ("- ", "+ "):
        return None
    words = _WORD.findall(f"{name} {before}".casefold())
    initials = frozenset(word[0] for word in words + _WORD.findall(after.casefold()))
    return _Number(value, bool(percent), " ".join(words), initials)


def _value(match):
    r"""The exact value of a match of _NUMBER; None for a zero denominator or a power of ten past all reason."""
    part = match.groupdict()
    power = int(part["power"] or part["exponent"] or 0)
    value = _exact(part["decimal"] or part["numerator"] or part["mantissa"] or part["whole"] or "1")
    bottom = _exact(part["denominator"] or part["bottom"] or "1")
    if bottom == 0 or abs(power) > LARGEST_POWER:
        return None
    value = value + _exact(part["top"]) / bottom if part["whole"] else value / bottom
    value = value * Fraction(10) ** power if power else value
    return -value if (part["sign"] or "+")[0] in "-nNmM" else value


def _exact(decimal):
    whole, _, part = decimal.replace(",", "").replace(" ", "").partition(".")
    return Fraction(int((whole + part) or "0"), 10 ** len(part))


def _is_label(text):
    r"""May this stand before a number? "Total: ", "Tom has "; not "x + ", "at least ", "log "."""
    words = _WORD.findall(text.casefold())
    return (set(_WORD.sub("", text)) <= set(" \t\n.,:;'\"≈#") and _CHANGES_VALUE.isdisjoint(words)
            and all(len(word) > 1 or word in "ai" for word in words))


def _is_unit(text):
    r"""May this stand behind a number? " apples", "km/h", " cm^2", "-year-olds"; not "x", " or more", "+ 1", "!"."""
    words = _WORD.findall(text.replace(".", ""))  # a.m., sq. ft.
    marks = _WORD.sub("", re.sub(r"(?<=[^\W\d_])\^?[23](?![\w.])", "", text))
    doubtful = [word for i, word in enumerate(words) if i and len(word) == 1 and word not in "aI"
                or i == 0 and len(word) < 3 + text[0].isalpha()]
    return (set(marks) <= set(" \t\n.,:;'\"()/-*%") and _CHANGES_VALUE.isdisjoint(words)
            and not re.search("[α-λν-ω]", text)
            and all(word in _SHORT_UNITS or not word.isascii() for word in doubtful))


# --- 4. Equivalence --------------------------------------------------------------------------------------------------

_CLOSING = {"(": ")]", "[": ")]", "⦃": "⦄"}
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_CHOICE = re.compile(r"(?:(?:option|choice)\s+)?\(?([a-z])(?:$|\)|[.:](?=\s|$)).*", re.I | re.DOTALL)
_SEPARATOR = re.compile(r"[,;&|]|\b(?:and|to|through|until)\b", re.I)
_RANGE = re.compile(r"[-+]?[\d.,/]+%?\s*(?:-|\.{2,})\s*[-+]?[\d.,/]+%?(?!\s*-\s*\d)")  # 5-10, not 2024-01-05


def _items(text):
    r"""Splits at commas and semicolons outside brackets: "(1, 2), 3" -> ["(1, 2)", " 3"]; None for a stray bracket."""
    items, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([⦃") - (character in ")]⦄")
        if depth < 0:
            return None
        if character in ",;" and depth == 0:
            items.append(text[start:i])
            start = i + 1
    return items + [text[start:]]


def _bracketed(text):
    r"""The items of a tuple, an interval or a set; None for any other text, such as "[0, 1) ∪ (2, 3]"."""
    return _items(text[1:-1]) if text[-1:] and text[-1] in _CLOSING.get(text[0], "") else None


def _canonical(text, depth=0):
    r"""Plain text as a Fraction, a tuple of items and brackets, or a string: equal where the texts mean the same."""
    text = text.strip().strip(".,;:")
    number = _number(text)
    if number:
        return number.value
    if depth < 20:
        items = _bracketed(text)
        if items and len(items) == 1 and text[0] + text[-1] in ("()", "[]"):
            return _canonical(items[0], depth + 1)
        opening, closing = (text[0], text[-1]) if items else ("", "")
        items = items or _items(text) or []
        if opening or len(items) > 1:
            values = [_canonical(item, depth + 1) for item in items]
            return (opening, *(sorted(values, key=repr) if opening == "⦃" else values), closing)  # a set has no order
    text = re.sub(r"\b(?:inf|infinity)\b", "∞", text.casefold().replace("sqrt", "√"))
    text = re.sub(r"\b([ap])\.m\b", r"\1m", text)
    text = re.sub(r"√(\d+|\w)", r"√(\1)", re.sub(r"[bp]matrix", "matrix", text))
    return re.sub(r"[\s\"'`]|\*(?!\d)", "", text).lstrip("+")


def _is_several(answer):
    r"""Two answers in one place? "18 or 20", "18, 20", "5-10", "1 2 3", "x = 1, y = 2"; not "(1, 2)", not "12:30"."""
    text = _plain(answer)
    if _number(text) or _bracketed(text):
        return False
    flat = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "(0)", text)
    parts = [] if "\\begin" in text else [part for part in _SEPARATOR.split(flat) if re.search(r"\d", part)]
    span = _RANGE.match(text)
    return (len(parts) > 1 or bool(re.search(r"\bor\b", text, re.I)) or bool(span and _is_unit(text[span.end():]))
            or bool(re.fullmatch(r"[-+\d.,\s]+", text) and len(text.split()) > 1))


def is_equivalent(answer, gold):
    r"""Do two final answers mean the same? Exact: "2/4" and "0.5" do, "0.333" and "1/3" do not; "" equals nothing.

    Either may be a whole text with a marker, such as a GSM8K answer that ends in "#### n".
    """
    answer, gold = (text if (found := _find(text)) is None else found for text in (_text(answer), _text(gold)))
    if max(len(answer), len(gold)) > LONGEST_ANSWER or not (_says_something(answer) and _says_something(gold)):
        return False
    a, b = _plain(answer), _plain(gold)
    x, y = _number(a), _number(b)
    if x and y:
        if x.label and y.label and x.label != y.label or x.initials and y.initials and not x.initials & y.initials:
            return False  # January 5 and February 5; 5 hours and 5 minutes
        x, y = (y, x) if y.percent else (x, y)
        return x.value == y.value or x.percent and not y.percent and x.value == 100 * y.value
    for one, other in ((a, b), (b, a)):  # a multiple-choice letter: C, (C), "C) 18"
        letter, choice = _LETTER.fullmatch(one), _CHOICE.fullmatch(other)
        if letter and choice:
            return letter[1].casefold() == choice[1].casefold()
    if ("=" in a) != ("=" in b):  # "y = 2x + 3" and "2x + 3"; where both have a name, it must be the same
        a, b = (rest if _NAME.fullmatch(name) else text
                for text in (a, b) for name, _, rest in [text.rpartition("=")])
    left = _canonical(a)
    return left != "" and left == _canonical(b)


# --- 5. The reward ---------------------------------------------------------------------------------------------------

def _text(value):
    r"""A string as it is, a small int as its digits (a gold may be one), anything else as no text."""
    if type(value) is int and abs(value) < 10**18:
        return str(value)
    return value if isinstance(value, str) else ""


def extract_answer(response, lenient=False):
    r"""The final answer in a response, or None: no marker, nothing behind it, or several answers in one place.

    lenient   without any marker take the last number: for the evaluation of untrained models, never for a reward
    """
    response = _text(response)
    answer = _find(response)
    if answer is None and lenient:
        response = response[response.rfind("</think>") + 8:] if "</think>" in response else response
        numbers = [match.group() for match in _NUMBER.finditer(_plain(response[-LONGEST_ANSWER:]))]
        return numbers[-1].strip() if numbers else None
    return answer if answer and not _is_several(answer) else None


def verify(response, gold, lenient=False):
    r"""Is the response right? `gold` is a final answer ("1,234") or a whole GSM8K answer that ends in "#### n"."""
    answer = _find(_text(response))
    if answer is None and lenient:
        answer = extract_answer(response, lenient=True)
    return bool(answer) and is_equivalent(answer, gold)  # a list can only be right against the same list


def math_reward(response, gold, format_bonus=0.0):
    r"""1.0 for a right answer, `format_bonus` for a wrong one that `extract_answer` can read, else 0.0.

    A right answer gets 1.0 in every form, so with a bonus in [0, 1) no wrong answer comes up to a right one.
    Raises ValueError for a bonus outside [0, 1).
    """
    if not isinstance(format_bonus, (int, float)) or not 0 <= format_bonus < 1:
        raise ValueError(f"format_bonus must be at least 0 and below 1, the value of being right; got {format_bonus!r}")
    answer = _find(_text(response))  # once, for `verify` and `extract_answer` in one
    if answer and is_equivalent(answer, gold):
        return 1.0
    return float(format_bonus) if answer and format_bonus and not _is_several(answer) else 0.0


def demo():
    r"""Prints a table of tricky responses."""
    rows = [
        ("9 * 2 = 18\n#### $18.00", "18"), ("#### 1,234 apples", "1234"), ("#### 18 or 20", "18"),
        ("#### 5 #### 6", "6"), ("\\boxed{18}\n####", "18"), ("#### Step 1: add\n\\boxed{18}", "18"),
        ("\\boxed{5}, no: \\boxed{\\dfrac34}", "0.75"), ("\\boxed{18", "18"), ("It is 18.", "18"), ("#### ", ""),
        ("The answer is 3.5. He has 20 left.", "7/2"), ("**Answer:** −7", "7"), ("**Answer:** −7", "-7"),
        ("<think>#### 18</think> Done.", "18"), ("#### 0.333", "1/3"), ("#### 50%", "50"), ("#### 1½ cups", "1.5"),
        ("#### 1.5 \\times 10^{3}", "1500"), ("\\boxed{[0,1)}", "[0, 1]"), ("\\boxed{(\\frac12, 3)}", "(0.5, 3)"),
        ("#### 18x", "18"), ("#### 9**9**9", "999"), ("#### 1e999999999", "1"),
    ]
    print(f"{'response':<44}{'extracted':<24}{'gold':<12}right")
    for response, gold in rows:
        print(f"{response!r:<44}{extract_answer(response)!r:<24}{gold!r:<12}{verify(response, gold)}")


if __name__ == "__main__":
    demo()
