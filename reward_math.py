r"""Is this answer right? The reward of reinforcement learning with verifiable rewards, for math word problems.

What it teaches: a verifier is a small, strict reader. The policy is trained against it, so whatever it reads too kindly
the policy will find: a hedge ("18 or 20"), a -7 read as 7, an empty answer accepted as part of any text. Four steps:

    1. places       where the answer stands: "#### 18", else "\boxed{18}", else "The answer is 18." or "Answer: 18"
    2. plain text   LaTeX, Unicode and Markdown in one form: "\dfrac34" and "¾" become "3/4"
    3. numbers      a tokenizer and the grammar below: exact fractions, with their units
    4. equivalence  of numbers; of tuples and intervals item by item; of all else as strings

The grammar of a number. What no rule takes is left over, and then the text is no number: it is compared as a string.

    chain        = side {("=" | "≈" | "→") side}      its value is the last side that is a quantity: 90 - 50 = 40
    side         = quantity | calculation | name
    quantity     = [label] [sign] number {scale} [unit] [explanation]
    label        = [words (noun | verb | ":")] {filler}   "Total:", "Tom has", "a total of"; not "about", "half of"
    sign         = "-" | "minus" | ...                    and the sign of a currency, before or behind it
    number       = whole ["and"] n "/" d | decimal "/" decimal | [decimal "*"] "10^" integer | decimal ["e" integer]
    decimal      = digits, plain or in threes, with or without a fraction: 1,234 and 1 234, not 1,23; 18. 18.00 .5
    scale        = "dozen" | "hundred" | "k" | "million" | ...
    unit         = words [("per" | "a" | "/") words]      apples, cm^2, dollars a day; not x, "or more", "squared"
    explanation  = words behind a comma | "(" ... ")" | ": " ... | ", with" ...      never "or", never a lone number
    calculation  = numbers, words and operators           90 - (15 + 25), 9 eggs * $2; not 2x, not 20 -
    name         = words and letters                      x, Profit, a + b

Decisions where a careful reader could waver:
- A place that holds nothing usable is no answer; the search does not fall back on the next kind of place. But a later
  marker counts only if an answer follows it: not "#### Check" above more text, an empty "Answer:", "if the answer is",
  or, after another answer, "The answer is correct".
- "Ans: 18", "Answer (in dollars) = 18", "The answer to this should be 18", "答案是 18", "<answer>18</answer>" and
  "**Final Answer**" on a line above the answer are like "Answer: 18".
- Several answers in one place are no answer, nor are two different numbers in a chain, 18 = 20 and 0.5 = 1/3. `verify`
  still accepts them whole against a gold that is the same. A rounded fraction is no contradiction: 100/3 = 33.33.
- What follows "because", "as he", "i.e.", ", with" or ", not" is an explanation, of text as well: "B, with 14" is "B".
- A weakened number is none: "about 18". The sign stands for rounding, though: 37.5 ≈ 38 is 38.
- Nothing is computed: 2^3 is not 8. Powers of ten are part of how a number is written: 1.5 \times 10^3.
- 50% equals 50 and 1/2, as data sets write both; but 50 is not 1/2, and 50% is not 0.5%.
- Units count only if both sides have one: "18 apples" is 18, "5√2 cm" is 5√2, "5 hours" is not "5 minutes".
- Case counts in variables, not in words: "MONDAY" is "Monday", "2X" is not "2x". A lone letter is a variable.
- Only a closed </think> hides text: what stands in a <think> that is never closed counts.

It never raises and never hangs: the search for the place takes linear time, a phrase is looked for in the last 100,000
characters, an answer has at most 1,000 and a power of ten at most 400 zeros. No eval, no sympy, no signals, no state.

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

_DIGITS = re.compile(r"\s*-?\d+\s*")  # the plain case first, for speed
_LINE = re.compile(r"[^\r\n]*")
_HEADING = re.compile(r"""[\s*_]* (?: [^\W\d_]{2,}\ \d{1,2}[.):].*    # Step 1: 9 * 2
    | (?:\d{1,2}[.):]\s*)? [*_]{0,3} [^\W\d_]{2,} (?:\ \d{1,2}\b)? [^\d\\$]* )   # Solution; 2. Add""", re.VERBOSE)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ is no brace
_BARE_BOX = re.compile(r"\\boxed ?([-+]?[\d.,/]*\d)")  # \boxed 9
_BETWEEN_BOXES = re.compile(r"[ \t${}\\(),;&~]*(?:(?:text)?\{? ?(?:or|and)\b)?[ \t${}\\(),;&~]*")
_PHRASE = re.compile(r"""[nN](?:swer|SWER)(?<=(?<![^\W_])[Aa].{5})
        (?:[ \t*_]{0,4}\([^()\d\n]{1,40}\))?  # Answer (in dollars):
        (?: (?:\s(?:to|of|for|in|we|you|I|here|then|now|thus|therefore)\b[^\W\d_ ]*(?:[ ][^\W\d_]+(?:['’]s)?){0,6})?
            \s{1,9}(?:is|IS|equals|(?:should|must|would|will)[ ]be)\b
          | [\s*_`"')]{0,9}(?:[:：=→⇒]|[-=]>|\\(?:R|r)ightarrow\b|\\to\b) )
    | (?<![^\W_])[Aa](?:ns|NS)[*_]{0,3}[ \t]?[:：.=→⇒] | 答案(?:[是为為]|\s?[:：]) | <(?:[aA]nswer|ANSWER)>
    | [\r\n][ \t>*_-]{0,6}(?:[Aa][*_]{0,3}[ \t]?[:：] | (?:Final[ ])?[Aa]nswer\.(?=\s))    # A: or Answer. on a new line
    | [\r\n][ \t>#*_|]{0,9}(?:(?:Final|final|FINAL)\ )?(?:[Aa]nswer|ANSWER)[ \t*_]{0,4}(?=[\r\n|])  # alone on a line
    """, re.VERBOSE)
_CONDITION = re.compile(r"\b(?:if|whether|unless)\s+(?:\w+\s+){0,2}a$", re.I)  # "if the answer is" gives none
_PHRASE_GAP = re.compile(r"(?:[\s:：*_`|}=→⇒]|[-=]>|\$\$|\\\[|\\\()*")  # "The answer is:\n\n$$18$$" goes on
_SENTENCE_END = re.compile(r"""[\r\n。] | </answer>
    | (?<!\bRs) (?: (?<!\.)\.(?!\.) | (?<![!?])[!?]+ )     # not in "..." nor after Rs
      (?= [\s*_`"'”’)\]}$<[] | \\[\])] | [A-Z][a-z] | $ )  # not in 3.5, .5 or p.m.
      (?!\s*=)                                            # not in 5! = 120""", re.VERBOSE)
_REMARK = re.compile(r"""(?:indeed\ )?(?:correct|right|reasonable|consistent|valid|verified|confirmed|plausible|sensible
    |accurate|exact|based|given|found|obtained|expected|supposed|(?:un)?clear|obvious|unique|well|less
    |more|within|in|at)\b | $""", re.VERBOSE | re.I)
_TAG = re.compile(r"<<[^<>]*>>|</?[|｜]?(?:0x\w|[A-Za-z_])[\w▁-]*[|｜]?>|\[/?(?:EOS|INST|s|end of text)\]")  # </s>
_BARS = re.compile(r"^\|+\s+|\s+\|+$")  # of a table, not of |5|
_REASON = re.compile(r"""(?<=\S) (?: (?:[,;:]?\s+(?:[(—–-]+\s*)?|\()
        (?:because|since|so|(?P<which>which)|given|rather\ than|instead\ of|due\ to|thus|hence|therefore|i\.?e)\b
    | [,;(]\s*(?:not|as|who|where|when|with|that\ is)\b
    | \s+as\s+(?:there|it|he|she|they|we|you|this|each|every)\b | \s+as\s+[\d.]+\s*[-+*/=×] )""", re.VERBOSE | re.I)


def _find(text):
    r"""The text in the highest place: None where there is no place at all, "" where the place holds no answer."""
    text = text[text.rfind("</think>") + 8:] if "</think>" in text else text
    if _DIGITS.fullmatch(text):
        return None
    end, headings = len(text), []
    while (at := text.rfind("####", 0, end)) >= 0 and len(headings) < 50:
        line = _LINE.match(text, at + 4, at + 6 + LONGEST_ANSWER).group()
        before = text[max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1:at].rstrip("#")
        if "####" in before:
            return ""  # two on a line
        if _DIGITS.fullmatch(line):
            return line.strip()
        inner = _find_box_or_phrase(line)  # "#### \boxed{18}", "#### Final answer: 18"
        if inner or before.strip(" \t>*-") or not _HEADING.fullmatch(line) or not text[at + 4 + len(line):].strip():
            return _trim(line) if inner is None else inner
        later = _find_box_or_phrase(text[at + 4:end])
        if later is not None:
            return later
        headings.append(line)
        end = len(text[:at].rstrip("#"))
    found = _find_box_or_phrase("\n" + text[:end])  # so that its first line begins like any other
    return _trim(headings[0]) if found is None and headings else found


def _find_box_or_phrase(text):
    r"""The last \boxed{...}; where there is none, what follows the last "answer is", "Answer:" or line "A:"."""
    text = _BARE_BOX.sub(r"\\boxed{\1}", text) if "\\boxed" in text else text
    at = max(text.rfind("\\boxed{"), text.rfind("\\boxed {"))
    if at < 0:
        return _find_phrase(text)
    content, _ = _read_box(text, at)
    previous = text.rfind("\\boxed{", 0, at)
    if previous >= 0:  # "\boxed{5} or \boxed{6}" is one place with two answers; otherwise the last box counts
        other, end = _read_box(text, previous)
        if end <= at <= end + 40 and other != content and _BETWEEN_BOXES.fullmatch(text[end:at]):
            return ""
    return content


def _read_box(text, at):
    r"""The content of the box at `at`, its braces balanced by counting, and where the box ends."""
    depth, opening = 0, text.index("{", at)
    for brace in _BRACE.finditer(text, opening, opening + LONGEST_ANSWER + 2):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            content = text[opening + 1:brace.start()].strip()
            return content if _says_something(content) else "", brace.end()
    return "", opening  # never closed


def _find_phrase(text):
    r"""The sentence after the last phrase that an answer follows; after the last phrase where none has one."""
    for longest in (4096, 100_000):  # the end first: a long text full of phrases is not walked through
        phrases = deque(_PHRASE.finditer(text, max(0, len(text) - longest)), maxlen=8)
        phrases = [phrase for phrase in phrases
                   if not _CONDITION.search(text, max(0, phrase.start() - 40), phrase.start())]
        answers = [_sentence(text, phrase.end()) for phrase in phrases]
        while phrases:
            answer, earlier, phrase = answers.pop(), "".join(answers), phrases.pop().group().casefold()
            if not earlier or answer and not (phrase.endswith(("is", "be")) and _is_remark(answer, earlier)):
                return answer
        if len(text) <= longest:
            break
    return None


def _sentence(text, at):
    at = _PHRASE_GAP.match(text, at, at + LONGEST_ANSWER).end()
    return _trim(_SENTENCE_END.split(text[at:at + LONGEST_ANSWER + 2], maxsplit=1)[0])


def _is_remark(text, earlier):
    r"""Is this no answer but about the `earlier` one: "correct: ...", or, about a number, "a whole number"?"""
    says_no = re.match(r"not?\b|wrong|incorrect|un", text)
    about_number = re.match(r"an? |[a-z]{2}", text) and not re.search(r"\d", text) and re.search(r"\d", earlier)
    return bool(_REMARK.match(text) or about_number and not says_no)


def _trim(text):
    r"""A line or a sentence without what surrounds its answer: tags, an explanation, Markdown, final punctuation."""
    if len(text) > LONGEST_ANSWER:
        return ""
    text = _without_reason(_TAG.sub(" ", text)).strip()
    text = _BARS.sub("", text)
    text = _bare(re.sub(r"[.,;:!?。\"'”]+$", "", _bare(text.strip(" \t\f\"'“”"))).lstrip(": "))
    text = text.strip("$") if text[:1] == "$" == text[-1:] else text
    text = text[1:-1].strip() if text[:1] == "<" and text[-1:] == ">" else text  # a template's <answer>, filled in
    return text if _says_something(text) else ""


def _without_reason(text):
    r"""The text before "because", "since", ..., but "the sum, which is 18" is a label."""
    reason = _REASON.search(text)
    if not reason or reason["which"] and _LABEL.fullmatch(_tokens(text[:reason.start()])[0]):
        return text
    return text[:reason.start()]


def _bare(text):
    r"""Without the Markdown around it: **18**; the last star of "20 *" is an operator."""
    bare = text.strip(" \t\r\n\f*_`")
    return bare + " *" if text.rstrip().endswith(" *") and text.lstrip()[0] != "*" else bare


def _says_something(text):
    return text.isalnum() or bool(re.search(r"[^\W_]|[∞∅]", text))


# --- 2. Plain text: one form for LaTeX, Unicode and Markdown ---------------------------------------------------------

_SYMBOLS = r"""\times * \cdot * \div ÷ \pi π \infty ∞ \emptyset ∅ \varnothing ∅ \pm ± \circ ° \degree ° \cup ∪ \cap ∩
    \in = \le ≤ \leq ≤ \ge ≥ \geq ≥ \ne ≠ \neq ≠ \approx ≈ \{ ⦃ \} ⦄ \lbrace ⦃ \rbrace ⦄ \% % \& & \pounds £ \euro €
    \to → \rightarrow → \Rightarrow → \longrightarrow → \Longrightarrow → \implies → \therefore →
    \dfrac \frac \tfrac \frac \cfrac \frac""".split()  # x \in [0, 1] names a set as x = 5 names a number
_COMMANDS = {
    **dict(zip(_SYMBOLS[::2], _SYMBOLS[1::2])),
    **dict.fromkeys(r"""\! \left \right \big \Big \bigl \bigr \Bigl \Bigr \displaystyle \bf \rm \it \tiny \scriptsize
                    \footnotesize \small \normalsize \large \Large \LARGE \huge \Huge \centering""".split(), ""),
    **dict.fromkeys(r"\, \; \: \quad \qquad \( \) \[ \] \newline".split() + ["\\ "], " "),
    **dict.fromkeys(r"\textbf \textit \textrm \mathrm \mathbf \mathit \mathsf \mathbb \mathcal \mbox \operatorname "
                    r"\boldsymbol \bm \underline \boxed \fbox".split(), r"\text"), r"\$": "$",
}
_LAYOUT = re.compile(r"\\(?:(?:text)?color(?:box)?|[hv]space)\*?\s*\{[^{}]*\}"
                     r"|\\(?:begin|end)\{(?:align|equation|gather|split)[a-z]*\*?\}")
_MATH = re.compile(r"\$\$|(?<![\\\d])\$((?:\\.|[^$\\])*)\$(?!\d)")  # $18$ is 18; $18 and "$5 of $20" are money
_CHARACTERS = str.maketrans("−‐‑‒–—―⁄∕×·⋅∙•’‘′“”″∈⇒⟹⟶➔", "-------//*****'''\"\"\"=→→→→", "\ufe0f")
_PARTS = dict(a=1, one=1, two=2, three=3, half=2, third=3, quarter=4)
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"(?<![\w)])\*\*|\*\*(?![\w(])", ""), (r"\*\*", "^"),  # bold, or a power between operands
    (r"[-=]+>", "→"), (r"\bRs\.", "₹"), (r"\b(?:US|CA|AU|NZ|HK)\$", "$"), (r"\b[Nn][Oo]\.\s*(?=\d)", "#"),
    (r"\b([aApP])\.\s?[mM]\b\.?", r"\1m"), (r"\bsqrt\b(?=[ (]*\d)", "√"), (r"(?<![^\W\d_])pi(?![^\W\d_])", "π"),
    (r"(?<=\d)\s+and\s+(a|one|two|three)[\s-]+(half|third|quarter)s?\b",  # 5 and a half
     lambda m: f" {_PARTS[m[1]]}/{_PARTS[m[2]]}"),
    (r"\btimes(?=\s+(?:the|his|her|its|their|this|that|\d))", "*"),  # an operator; not in "6 times a day"
    (r"[~\0]", " "), (r"\s{2,}", "  "), (r"\s*\^\s*", "^"))]
_ARGUMENT = r"\s*(?:\{([^{}]*)\}|([^\s{}\\]))"  # of a command: a group with no group in it, or one character
_FRAC, _SQRT = re.compile(r"\\frac" + _ARGUMENT * 2), re.compile(r"\\sqrt" + _ARGUMENT)
_OVER = re.compile(r"(?:\{|^)([^{}]*)\\over(?![A-Za-z])([^{}]*)(?:\}|$)")
_TEXT, _GROUP = re.compile(r"\\text\s*\{([^{}]*)\}"), re.compile(r"([\^_]\s*|(?<![A-Za-z\]}\s])|^)\{([^{}]*)\}")


def _bracket(text, simple):
    r"""Brackets around a numerator, a root or an exponent, unless it is simple enough to read without them."""
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text or "")
    return text if re.fullmatch(simple, text) else f"({text})"


def _plain(text):
    r"""One form for all ways to write a thing: "1{,}234" -> "1,234", "1\frac12" -> "1 1/2", "**10⁻³**" -> "10^-3"."""
    if text.isalnum() and text.isascii():
        return text
    text = _bare(text)
    if not text.isascii():
        text = re.sub(r"(?<=\w\w)\s+—\s+", ": ", text)  # Total — 18
        text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda m: "^" + m.group(), text)  # 10³ is 10^3, never 103
        text = re.sub("[¼-¾⅐-⅞↉]", lambda m: " " + m.group(), text)  # 1½ is 1 1/2, never 11/2
        text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)[:LONGEST_ANSWER]
        # Invisible marks vanish; emoji and lone surrogates become spaces; digits of every script become 0 to 9.
        drop = {"Cf": "", "So": " ", "Cs": " ", "Co": " "}
        text = "".join(str(unicodedata.decimal(character)) if character.isdecimal() else character if character == "°"
                       else drop.get(unicodedata.category(character), character) for character in text)
    text = _MATH.sub(r" \1 ", text) if "$" in text else text
    if "\\" in text or "{" in text:
        text = text if "matrix" in text or "array" in text else text.replace("\\\\", " ")
        text = _LAYOUT.sub("", text).replace("&=", "=").replace("{,}", ",")
        text = re.sub(r"\\(?:[A-Za-z]+|.)", lambda m: _COMMANDS.get(m.group(), m.group()), text)
        text = re.sub(r"^\s*\{([^{}]*,[^{}]*)\}\s*$", r"⦃\1⦄", text)  # a set written without backslashes
        text = re.sub(r"\^\s*\{?\s*°\s*\}?", "°", text)
        for _ in range(20):  # from the innermost group outwards
            before = text
            text = _TEXT.sub(r" \1 ", _OVER.sub(r"\\frac{\1}{\2}", text))
            text = _SQRT.sub(r"√(\1\2)", text)
            text = _FRAC.sub(lambda m: " " + _bracket(m[1] or m[2], r"[-+]?[\w.,]*(√\(\w+\))?") + "/"
                             + _bracket(m[3] or m[4], r"[-+]?[\d.,]+|√\(\w+\)|\w"), text)
            text = _GROUP.sub(lambda m: m[1] + _bracket(m[2], r"-?\d+|\w" if m[1] else r"[^+*/-]*|-?\d+"), text)
            if text == before or "{" not in text and "\\" not in text:
                break
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip(" \t\r\n\f").lstrip("→= ")


# --- 3. Numbers: the tokenizer and the grammar -----------------------------------------------------------------------

_DECIMAL = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|[1-9]\d{0,2}(?:\ \d{3})+(?!\d|\s*/)|\d+)(?:\.\d*)?|\.\d+)"
_NUMBER = rf"""(?P<whole>\d+)\s+(?:and\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)
    | (?P<numerator>{_DECIMAL})\s*/\s*(?P<denominator>[-+]?{_DECIMAL})
    | (?:(?P<mantissa>{_DECIMAL})\s*[*x]\s*)?10\^\(?(?P<power>[-+]?\d+)\)?
    | (?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+)(?!\w))?"""
_WHOLE_NUMBER = re.compile(_NUMBER, re.VERBOSE)
_TOKEN = re.compile(rf"(?P<number>(?:{_NUMBER})(?!\d)) | (?P<word>[^\W\d_]+(?:'[^\W\d_]+)*(?:\^?[23](?![\d.]))?)"
                    r"| (?P<space>\s+) | (?P<mark>\S)", re.VERBOSE)

# The tokenizer gives each token a kind, one letter, and the grammar is written in kinds: "Tom has 18 apples left" is
# "s v 9 w v". Kinds are 9: number, u: unit, $: currency, k: scale, x: variable, y: a power of one, s: word of three
# letters, w: a longer one or one in another script, a space or a mark: itself, ?: anything else, and these:
_KINDS = {word: kind for kind, words in {
    "c": """not cannot never than least most half third fourth fifth tenth quarter twice double triple between squared
        cubed root plus pi π sqrt log ln sin cos tan exp mod factorial over under above below binary base repeating
        recurring halve ish about approx approximately around circa roughly nearly hardly barely almost exceed
        exceeded multiplied divided doubled tripled halved estimated""",  # changes the value
    "f": """the so thus hence therefore then that this it he she they we you i there just also
        final exactly only precisely simply definitely finally actually certainly consequently overall
        clearly obviously indeed still now always currently originally initially eventually""",  # filler
    "v": """is are was were be equal has have had get got make made pay paid cost earn earned spend spent come amount
        need save saved sell sold buy bought take took give gave use used leave left ran went drove ate lost
        won""",  # verb, may end a label
    "t": """total sum profit price amount distance speed score time weight height length area perimeter volume revenue
        income salary balance share discount tip tax bill change loss age average""",  # noun: "a total of" is a label
    "n": "answer ans number value result count product difference remainder rest",  # noun: "the remainder of" is none
    "e": "in for from at on by as more less old away times altogether th st nd rd",  # ends a unit
    "o": "of to", "p": "per each every", "a": "a an", "m": "minus negative", "r": "or", "&": "and",
    "h": "maybe perhaps possibly probably could might", "g": "with where", "u": "square sq cubic cu",
    "q": "yes no true false",
}.items() for word in words.split()}
_MARKS = {**{mark: mark for mark in ",;:=/^#!√_|-*()"}, **dict.fromkeys(".'\"\\∠", "."), "≈": "=", "→": "=", "+": "-",
          "÷": "*", "[": "(", "{": "(", "]": ")", "}": ")", "%": "u", "°": "u", **dict.fromkeys("$€£¥₹¢", "$")}
_SCALES = dict(dozen=12, hundred=100, thousand=10**3, million=10**6, billion=10**9, trillion=10**12, k=10**3, K=10**3,
               M=10**6, B=10**9, bn=10**9)
# Each group is one unit and its names; a regular plural needs no entry; "a/b" is a per b.
_UNIT_NAMES = """dollar $ usd buck | cent ¢ | euro € eur | sterling £ gbp | yen ¥ jpy | rupee ₹ rs inr | franc chf
    | percent % pct | degree ° deg | celsius C | fahrenheit F | meter m metre | kilometer km kilometre
    | centimeter cm centimetre | millimeter mm millimetre | mile mi | foot ft | inch | yard yd | gram g
    | kilogram kg kilo | milligram mg | pound lb | ounce oz | ton tonne | liter L l litre | milliliter mL ml millilitre
    | gallon gal | quart qt | pint pt | cup | newton N | volt V | watt W | joule J | second s sec
    | minute min | hour h hr | day | week wk | month mo | year yr | am | pm
    | mile/hour mph | kilometer/hour kph kmh | mile/gallon mpg"""
_MONEY = {"dollar", "cent", "euro", "sterling", "yen", "rupee", "franc"}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_IRREGULAR = {"feet": "foot", "people": "person", "children": "child", "men": "man", "women": "woman"}


def _stem(word):
    r"""One form for singular and plural, "boxes" and "box"; a lone letter is a symbol and keeps its case."""
    folded = word if len(word) == 1 else word.casefold()
    return re.sub("y$", "i", _IRREGULAR.get(folded, folded)).rstrip("es") if len(word) > 2 else folded


_UNITS = {_stem(name): group.split()[0] for group in _UNIT_NAMES.split("|") for name in group.split()}
_KNOWN = set(_UNITS.values())


def _kind(word, before):
    r"""The kind of a word; `before` is that of the token before it: "m" is a unit in "5 m", a variable in "m + 5"."""
    folded = word.casefold()
    singular = folded[:-1] if folded.endswith("s") else folded
    if word in _SCALES or len(word) > 2 and singular in _SCALES:
        return "k"
    unit = _UNITS.get(_stem(word.rstrip("^23")))
    if unit and (len(word) > 1 or before in "9k/$up"):
        return "$" if unit in _MONEY and len(word) < 4 else "u"
    if folded in _KINDS or singular in _KINDS:
        return _KINDS.get(folded) or _KINDS[singular]
    if "^" in word or folded.endswith("n't"):
        return "y" if "^" in word else "c"
    if re.match("[a-zα-ω]", folded) and len(word) < 4:
        return "s" if len(word) == 3 else "x"
    return {"ing": "g", "ed": "v"}.get((re.search("(?:ing|ed)$", folded) or [""])[0], "w")


def _tokens(text):
    r"""The kinds of all tokens, as one string, and their texts."""
    kinds, texts, before = "", [], "?"
    for match in _TOKEN.finditer(text):
        word, group = match.group(), match.lastgroup
        kind = {"number": "9", "space": " "}.get(group) or (
            _kind(word, before) if group == "word" else _MARKS.get(word, "?"))
        kinds, before = kinds + kind, before if kind in " ." else kind
        texts.append(word)
    return kinds, texts


# The grammar of the header, in kinds. All words but variables and those that change the value:
_ANY = "wsgntvfheopau$k&"
_LABEL = re.compile(rf"(?![wsxka. ]+,)(?:[{_ANY}x.,:()\ ]*(?:[ntv:]|[tv]\ o))?[fah.,#\ ]*")
_SIGN = r"(?:(?:(?<![^ :])-|^- |^m |(?<=[v:] )m )?(?:\$ ?)*|\$ ?-)"  # Total: -5; but Total - 5 and x-5 are calculations
_UNIT = rf"(?:[uwe$]|(?<=[ .-])[{_ANY}]|[ .]|(?<=[a-z9])-(?=[a-z])|(?<! )/)*"  # 18apples, but not 18abc
_EXPLANATION = (rf" ?;(?! ?[rh&])[^h]*v[^h]*| \(r (?![ef])[{_ANY}cx9./ ]*\)| ?[,;:(|][{_ANY}.,;:()| -]*"
                rf"| \((?![rhx&])[^()]*(?:\([^()]*\)[^()]*)*\)[{_ANY}. ]*| ?: (?![rh&]|[ $-]*9$).*"
                rf"|, ?g.*| g (?:a|9 [{_ANY}]).*")
_QUANTITY = re.compile(rf"(?P<label>{_LABEL.pattern})(?P<sign>{_SIGN})(?<![a-z])(?P<number>9)(?P<scale>(?: ?k)*)"
                       rf"(?P<unit>{_UNIT})(?P<rest>{_EXPLANATION})?")
_LETTER = re.compile(r"^\s*(?:\(?[A-Ha-h]\)|[A-Ha-h]:)\s*(?=\S)")  # of a choice: (C) 18
_NAME = re.compile(rf"[{_ANY}cmx.,:()/*^√_|# -]*")
_CALCULATION = re.compile(rf"(?! ?[*/^])(?:[9{_ANY}cm.()\-*/^!√_|: ]|,(?=[^()]*\))"
                          r"|(?<=9 )x(?= ?9)|x(?=[(_]))*(?<![-*/^])")  # 3 x 4, f(2), a_1; not 2x, not 20 -
_FORMULA = re.compile(rf"(?! ?[*/^])[9{_ANY}cmxy.()\-*/^!√_|: ]*(?<![-*/^])")  # behind a name only: A = pi r^2 = 18


class _Quantity(NamedTuple):
    value: Fraction
    unit: frozenset = frozenset()  # {"meter"}; without a known unit all the words: {"red", "appl"}
    rate: frozenset = frozenset()  # {"second"}: per what
    name: str = ""  # x in x = 18
    places: int = 0  # digits after the point; -1 for a fraction, 100/3, which is also a calculation


def _value(text, sign):
    r"""number: its exact value; None for a zero denominator, 1 5/2, or a power of ten past all reason."""
    part = _WHOLE_NUMBER.fullmatch(text)
    power = int(part["power"] or part["exponent"] or 0)
    value = _exact(part["decimal"] or part["numerator"] or part["mantissa"] or part["whole"] or "1")
    if abs(power) > LARGEST_POWER:
        return None
    if "/" in text:
        bottom = _exact(part["denominator"] or part["bottom"])
        if bottom == 0 or part["top"] and int(part["top"]) >= bottom:
            return None
        value = value + _exact(part["top"]) / bottom if part["whole"] else value / bottom
    value = value * Fraction(10) ** power if power else value
    return -value if sign in ("-", "minus", "negative") else value


def _exact(decimal):
    whole, _, part = re.sub(r"[,\s]", "", decimal).partition(".")
    return Fraction(int((whole + part) or "0"), 10 ** len(part))


def _unit(kinds, texts):
    r"""unit: what is counted, and per what: "red apples each day" -> {"red", "appl"}, {"day"}."""
    what, per, power = [], [], ""
    words = what
    for kind, text in zip(kinds, texts):
        if kind in "pa/":
            words = per
        elif kind in "vfeohgk&":
            words = []  # the unit has ended: 18 apples left for Tom
        elif text.casefold() in _POWERS:
            power = _POWERS[text.casefold()]
        elif kind in "wsntu$":
            bare = text.rstrip("^23")
            name, *rate = _UNITS.get(_stem(bare), _stem(bare)).split("/")
            words.append(name + power + "^" * (bare != text) + text[len(bare):].lstrip("^"))
            per += rate
            power = ""
    what = what or ["inch"] * (texts == [" ", "in"])
    known = [word for word in what if word.partition("^")[0] in _KNOWN]
    return frozenset(known or what), frozenset(per)


def _quantity(kinds, texts):
    r"""quantity: what is read, and the kinds of its explanation; None and "" where the tokens are no quantity."""
    match = _QUANTITY.fullmatch(kinds)
    if not match:
        return None, ""
    part = {name: texts[slice(*match.span(name))] for name in match.groupdict()}
    number, rest = part["number"][0], match["rest"] or ""
    signs = [text.casefold() for text in part["sign"] if text.casefold() in ("-", "minus", "negative")]
    value = _value(number, *signs or [""])
    if value is None or re.fullmatch(r" \([ $-]*9 ?\)", rest) and value != _value(part["rest"][rest.index("9")], ""):
        return None, ""  # 18 (20) are two answers
    for word in part["scale"]:
        value *= _SCALES.get(word) or _SCALES.get(word.casefold().rstrip("s"), 1)
    unit, rate = _unit(match["sign"] + match["unit"], part["sign"] + part["unit"])
    quantity = _Quantity(value, unit, rate, "", -1 if "/" in number else len(number.partition(".")[2]))
    if rest.startswith(" (r") and "9" in rest:  # 2.5 hours (or 150 minutes); but 18 (or 20) are two answers
        other = _number("".join(part["rest"][3:-1]))
        if not other or not (_same_value(other, quantity) and _same_unit(other, quantity)
                             or unit and other.unit and unit | other.unit <= _KNOWN and unit != other.unit):
            return None, ""
    return quantity, rest


def _sides(kinds, texts):
    r"""The sides of a chain and the sign of equality behind each: split outside brackets, and (18) without its own."""
    if "=" not in kinds and kinds[:1] != "(":
        yield kinds.strip(), texts[len(kinds) - len(kinds.lstrip()):len(kinds.rstrip())], ""
        return
    masked = re.sub(r"\([^()]*\)", lambda inside: inside.group().replace("=", "?"), kinds)
    for match in re.finditer(r" *([^=]*?) *(=|$)", masked):
        start, end = match.span(1)
        if re.fullmatch(r"\([^(),]*9[^(),]*\)", kinds[start:end]) and "," not in "".join(texts[start:end]):
            start, end = start + 1, end - 1
        yield kinds[start:end], texts[start:end], texts[match.start(2)] if match[2] else ""
        if not match[2]:
            return


def _chain(text):
    r"""chain: the quantities among its sides; [] where a side is neither that nor a calculation nor a name."""
    if text.isdecimal():
        return [_Quantity(Fraction(int(text)))]
    found, name, equality = [], "", ""
    tokens = _tokens(_LETTER.sub("", text))
    for i, (kinds, texts, following) in enumerate(_sides(*tokens)):
        found = [] if equality == "≈" else found  # 37.5 ≈ 38 is 38
        quantity, rest = _quantity(kinds, texts)
        if quantity and (not following or not rest or rest.lstrip()[0] in ":,"):
            found.append(quantity._replace(name=name) if name else quantity)
            if rest:
                return found  # "18: 9 * 2 = 18": all that follows is the explanation
        elif i and (not kinds or "&" in kinds) or not (_NAME.fullmatch(kinds) or _CALCULATION.fullmatch(kinds)
                                                       or name and _FORMULA.fullmatch(kinds)):
            return []
        elif i == 0 and not re.search("[b-wyz]", kinds):
            name = "".join(texts).replace(" ", "")
        equality = following
    return found


def _number(text):
    r"""Plain text as one number, else None: "2 million people" -> 2,000,000; "18 + 2", "18x", "18 = 20" -> None."""
    found = _chain(text)
    last = ([quantity for quantity in found if quantity.places >= 0] or found or [None])[-1]
    return last if all(_agree(quantity, last) for quantity in found if quantity is not last) else None


def _agree(x, last):
    r"""May both stand in a chain? Equal, of different units, or 100/3 = 33.33 and 2/3 = 66.67% to the last digit."""
    value = x.value * (100 if "percent" in last.unit - x.unit else 1)
    rounded = x.places < 0 <= last.places and abs(value - last.value) <= Fraction(1, 2 * 10 ** last.places)
    return rounded or _same_value(x, last) or not _same_unit(x, last)


# --- 4. Equivalence --------------------------------------------------------------------------------------------------

_CLOSING = {"(": ")]", "[": ")]", "⦃": "⦄"}
_CHOICE = re.compile(r"(?:(?:option|choice)\s+)?\(?([a-z])(?:$|\)|[.:](?=\s|$)).*", re.I | re.DOTALL)
_EXPLAINED = re.compile(r"(yes|no|true|false)\s*[,;:.(-](?!.*\b(?:or|but|no|yes|maybe)\b).*"  # Yes, it is
                        r"|([^\W\d_]{2,}(?:\ [^\W\d_]+)*)\s+\((?!or\b).*\)"
                        r"|([^\W\d_]+(?:\ [^\W\d_]+)*);\s(?!or\b)\S+\s.*", re.I)  # Monday (2 days later)
_MEASURE = re.compile(  # 3:30 pm, 5√7 cm
    r"[$£€]?(\d{1,2}:\d\d|[-+\d.,*/()^\s]*[√π][-+\d.,*/()^√π\s]*?)\s*(?:≈.*|([^\W\d_π].*))?")
_SEPARATOR = re.compile(r"[,;&|]|\b(?:and|to|through|until)\b", re.I)
_RANGE = re.compile(r"[-+]?[\d.,/]+%?\s*(?:-|\.{2,})\s*[-+]?[\d.,/]+%?(?!\s*-\s*\d)")  # 5-10, not 2024-01-05
_LEFT = re.compile(r"(?:[^\W\d]|(?<=[\w(])\d|[\s()+,'|∠:=\\])+")  # x, f(2), a + b, \angle ABC; not 2x, not x^2


def _same_value(x, y):
    r"""Equal, or a percentage and its number or fraction: 50% is 50 and 1/2."""
    x, y = (y, x) if "percent" in y.unit else (x, y)
    return x.value == y.value or "percent" in x.unit and "percent" not in y.unit and x.value == 100 * y.value


def _same_unit(x, y):
    r"""Do the units agree? They do where one side has none; $18 a day is $18, but miles an hour are no miles."""
    if not (x.unit and y.unit):
        return True
    if not (x.unit <= y.unit or y.unit <= x.unit):
        return False
    if x.rate and y.rate:
        return x.rate <= y.rate or y.rate <= x.rate
    return x.rate == y.rate or not x.unit <= _KNOWN - _MONEY


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
    text = re.sub(r"(?<!\\)[^\W\d_]{2,}", lambda m: m.group().casefold(), text).replace("sqrt", "√")
    text = re.sub(r"[bp]matrix", "matrix", re.sub(r"\b(?:inf|infinity)\b", "∞", text))
    text = re.sub(r"√(\d+|\w)", r"√(\1)", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|[\"'`]|\*(?!\d)", "", text).lstrip("+")


def _is_several(answer):
    r"""Two answers in one place? "18 or 20", "18, 20", "5-10", "1 2 3", "x = 1, y = 2"; not "(1, 2)", not "12:30"."""
    text = _without_reason(_plain(answer)).replace("$", "")
    if _number(text) or _bracketed(text):
        return False
    flat = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "(0)", text)
    parts = [] if "\\begin" in text else [part for part in _SEPARATOR.split(flat) if re.search(r"\d", part)]
    span = _RANGE.match(text)
    return (len(parts) > 1 or len(_chain(text)) > 1 or bool(re.search(r"\bor\b", text, re.I))
            or bool(span and re.fullmatch(_UNIT, _tokens(text[span.end():])[0]))
            or bool(re.fullmatch(r"[-+\d.,\s]+", text) and len(text.split()) > 1))


def is_equivalent(answer, gold):
    r"""Do two final answers mean the same? Exact: "2/4" and "0.5" do, "0.333" and "1/3" do not; "" equals nothing.

    Either may be a whole text with a marker, such as a GSM8K answer that ends in "#### n".
    """
    answer, gold = (text if re.fullmatch(r"A[.:][^\n#\\]*", text) or (found := _find(text)) is None else found
                    for text in (_text(answer), _text(gold)))
    if max(len(answer), len(gold)) > LONGEST_ANSWER or not (_says_something(answer) and _says_something(gold)):
        return False
    a, b = _without_reason(_plain(answer)), _without_reason(_plain(gold))
    x, y = _number(a), _number(b)
    if x and y:
        return _same_value(x, y) and _same_unit(x, y) and (not x.name or not y.name or x.name == y.name)
    for one, other in ((a, b), (b, a)):
        explained, choice = _EXPLAINED.fullmatch(one), _CHOICE.fullmatch(one)
        if explained and (explained[1] or explained[2] or explained[3]).casefold() == other.casefold():
            return True
        if choice and len(one.strip(".:")) > 1 and re.fullmatch(r"\(?[A-Za-z]\)?[.:]?", other):  # C, (C), "C) 18"
            return choice[1].casefold() == other.strip("().:").casefold()
    if ("=" in a) != ("=" in b):  # "y = 2x + 3" and "2x + 3"; where both have a name, it must be the same
        a, b = (rest if _LEFT.fullmatch(name) else text
                for text in (a, b) for name, _, rest in [text.rpartition("=")])
    measures = [_MEASURE.fullmatch(text) for text in (a, b)]
    if all(measures):
        units = [_number("1 " + (measure[2] or "")) for measure in measures]
        if all(units) and {unit.value for unit in units} == {1}:
            if not _same_unit(*units):
                return False
            a, b = (measure[1] for measure in measures)
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
        numbers = re.findall(rf"((?:(?<![\w)])-)?(?:{_NUMBER})(?!\d))", _plain(response[-LONGEST_ANSWER:]), re.VERBOSE)
        return numbers[-1][0] if numbers else None
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
