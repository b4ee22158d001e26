"""Numbers in free text: where they are, and what they are worth. Time grows with the length of the text alone."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from math import prod
from typing import Final, Literal, TypeAlias

__all__ = ["ROUNDED", "DecimalMark", "Numeral", "Which", "choose_numerals", "find_numerals"]

DecimalMark: TypeAlias = Literal["auto", ".", ","]
Which: TypeAlias = Literal["last", "first", "only"]

# Quotients and powers have no end in decimals. Nothing traps: a value beyond all bounds is infinite, not an exception.
ROUNDED: Final = Context(prec=60, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
# Signs and powers of ten keep every digit of a number, however many a text has.
_UNROUNDED: Final = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])

_SPACES: Final = " \u00a0\u2009\u202f"
_VULGAR: Final = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_SUPERSCRIPTS: Final = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
_UNITS: Final = {
    word: Decimal(10) ** power
    for word, power in {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}.items()
}
# Letters that may touch a number from the left; after any others it is part of a name, as in H2O or utf8.
_CODES: Final = "AUD|BRL|CAD|CHF|CNY|CZK|DKK|EUR|GBP|HKD|INR|JPY|KRW|MXN|NOK|NZD|PLN|RMB|Rs|RUB|SEK|SGD|TRY|USD|ZAR"
_SYMBOLS: Final = "$€£¥₹₽₩₺₪₫₴฿¢"

# Every quantifier is possessive or short, so that a megabyte of digits and separators is read once.
_NUMERAL: Final = re.compile(
    rf"""
    (?:
        (?P<whole>[0-9]{{1,3}}+) [ ] (?P<top>[0-9]++) / (?P<bottom>[0-9]++) (?![/.,]?[0-9])   # 1 3/4
      | (?P<body>
            [0-9]{{1,3}}+ (?:[{_SPACES}][0-9]{{3}}(?![0-9]))++ (?:[.,][0-9]++)?+              # 1 080,50
          | [0-9]++ (?:[.,'\u2019_][0-9]++)*+
          | (?<![\w.,]) [.][0-9]++                                                          # .5
          | [{_VULGAR}]
        )
        (?P<exponent>[eE][-+]?[0-9]{{1,9}}(?![0-9A-Za-z_]))?+
        (?:
            [ ]?/[ ]?(?P<divisor>[0-9]++)(?![/.,]?[0-9])
          | (?P<vulgar>[{_VULGAR}])
          | [ ]?(?:\*\*|\^)[ ]?[{{(]?(?P<power>[-+]?[0-9]{{1,9}})(?![0-9])[}})]?
          | (?P<superscript>[{_SUPERSCRIPTS}]{{1,6}}+)
        )?+
    )
    (?:[{_SPACES}]?(?P<percent>%|percent\b|per\ cent\b))?+
    (?P<units>(?:[{_SPACES}-](?i:hundred|thousand|million|billion|trillion)\b){{0,2}}+)
    """,
    re.VERBOSE,
)
_TIMES: Final = re.compile(rf"[{_SPACES}]?(?:\u00d7|[xX*·\u22c5]|\\times|\\cdot)[{_SPACES}]?")
# A minus sign belongs to a number if it touches it or its currency, and no word or number comes before it.
_MINUS: Final = re.compile(
    rf"(?<![\w)\]}}%\u2013-])[-\u2013](?:(?:[A-Z]{{1,2}})?[{_SYMBOLS}][{_SPACES}]?|(?:{_CODES})[{_SPACES}]?)?\Z"
)
_LONGEST_MINUS: Final = 6
_NAME: Final = re.compile(rf"(?<![A-Za-z_])(?!(?:{_CODES})\Z)[A-Za-z_]+\Z|[A-Za-z_]{{4}}\Z|[_^][{{(]?\Z")
# Also \frac34, as TeX takes it, and \frac{1,080}{4}.
_FRAC: Final = re.compile(
    r"(?P<sign>[-+\u2013])?\\[cdt]?frac[ ]?(?:\{(?P<top>[-+]?[0-9][0-9.,]*+)\}|(?P<t>[0-9]))"
    r"[ ]?(?:\{(?P<bottom>[0-9]++)\}|(?P<b>[0-9]))"
)
# Signs and digits of other scripts, and how LaTeX writes the marks in a number.
_PLAIN: Final = str.maketrans(
    {"\u2212": "-", "\ufe63": "-", "\uff0d": "-", "\uff0b": "+", "\uff05": "%", "\u066a": "%"}
    | {"\u066b": ".", "\u066c": ",", "\u2044": "/"}
)
_LATEX: Final = (("{,}", ","), ("\\,", "\u202f"), ("\\!", ""), ("\\%", "%"), ("\\$", "$"))
_PLAIN_SUPERSCRIPTS: Final = str.maketrans(_SUPERSCRIPTS, "0123456789-+")
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_OTHER_DIGITS: Final = re.compile(r"(?![0-9])\d")
# The line in which GSM8K gives an answer, "#### 72", also with a unit. A heading such as "#### 1. Add" is none.
_MARKED: Final = re.compile(r"^[ \t]*+####[ \t]++(?![0-9]++[.)][ \t])([^\w\n]*+[0-9][^\n]*+)$", re.MULTILINE)
_WORD: Final = re.compile(r"[^\W\d_]++")
_BOXED: Final = "\\boxed{"


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number of a text.

    Attributes:
        value: Its value; 50 of `50%`.
        is_percent: Whether a percent sign follows.
    """

    value: Decimal
    is_percent: bool = False


def choose_numerals(text: str, which: Which = "last", decimal: DecimalMark = "auto") -> list[Numeral]:
    r"""Return the number that a text answers with, all of its numbers for `only`, or none.

    The number of the last line `#### 72` counts first, then those of the last `\boxed{}`, then those of the whole text.
    """
    marked = _MARKED.findall(text)
    if marked and len(_WORD.findall(marked[-1])) <= 1:
        found = list(find_numerals(marked[-1], decimal))
        if len(found) == 1:
            return found
    start = text.rfind(_BOXED)
    boxed = _read_braces(text[start + len(_BOXED) :]) if start >= 0 else ""
    for part in (boxed, text):
        numerals = find_numerals(part, decimal)
        first = next(numerals, None)
        if first is not None:
            others = deque(numerals, maxlen=1 if which == "last" else None) if which != "first" else deque()
            return [first, *others] if which == "only" else [others[-1] if others else first]
    return []


def _read_braces(text: str) -> str:
    """Return the text up to the brace that closes one opened before it."""
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[: match.start()]
    return text


def find_numerals(text: str, decimal: DecimalMark = "auto") -> Iterator[Numeral]:
    """Yield the numbers of a text from left to right.

    Args:
        text: Any text.
        decimal: What separates decimals. `auto` reads one comma before exactly three digits, and one point before
            them, as English does (`1,080` is 1080, `1.080` is 1.08), and other forms as what they can only be
            (`1.080,50`, `0,5`).
    """
    text = text.translate(_PLAIN)
    if not text.isascii():
        text = _OTHER_DIGITS.sub(lambda match: str(unicodedata.decimal(match.group())), text)
    if "\\" in text or "{" in text:
        for written, plain in _LATEX:
            text = text.replace(written, plain)
        text = _FRAC.sub(_write_fraction, text)
    position = 0
    while match := _NUMERAL.search(text, position):
        start, position = match.span()
        if _NAME.search(text, max(0, start - 4), start):
            continue
        *listed, value = _read_parts(match, decimal)
        times = _TIMES.match(text, position)
        scale = _NUMERAL.match(text, times.end()) if times else None
        # Scientific notation, 1.08 x 10^3. Any other product is not calculated.
        if scale and scale["body"] == "10" and (power := _read_power(scale)) is not None:
            value, position = value.scaleb(power, _UNROUNDED), scale.end()
        value = prod((_UNITS[word.lower()] for word in _WORD.findall(match["units"])), start=value)
        is_negative = _MINUS.search(text, max(0, start - _LONGEST_MINUS), start) is not None
        for number, each in enumerate((*listed, value)):
            yield Numeral(_UNROUNDED.minus(each) if is_negative and not number else each, bool(match["percent"]))


def _write_fraction(match: re.Match[str]) -> str:
    r"""Return a fraction of LaTeX in one line. A sign in front touches it; digits do not, as in 2\frac{1}{2}."""
    top, bottom = match["top"] or match["t"], match["bottom"] or match["b"]
    return f" {top}/{bottom}" if match["sign"] is None else f"{match['sign']}{top}/{bottom}"


def _read_parts(match: re.Match[str], decimal: DecimalMark) -> list[Decimal]:
    """Return the value of a match; several values where it is no single number."""
    if match["whole"]:
        whole, top, bottom = (Decimal(match[part]) for part in ("whole", "top", "bottom"))
        is_mixed = top < bottom
        share = ROUNDED.divide(top, bottom) if bottom else top
        return [ROUNDED.add(whole, share)] if is_mixed else [whole, share]
    *listed, value = _split_body(match["body"], decimal)
    if match["exponent"]:
        value = value.scaleb(int(match["exponent"][1:]), _UNROUNDED)
    if match["divisor"]:
        divisor = Decimal(match["divisor"])
        # In a date, 12/05/2024, and in a division by zero there is no quotient, but another number.
        is_quotient = divisor and match.string[match.start() - 1 : match.start()] != "/"
        return [*listed, ROUNDED.divide(value, divisor)] if is_quotient else [*listed, value, divisor]
    if match["vulgar"]:
        value = ROUNDED.add(value, _read_vulgar(match["vulgar"]))
    power = _read_power(match)
    return [*listed, value if power is None else ROUNDED.power(value, power)]


def _read_power(match: re.Match[str]) -> int | None:
    plain = (match["power"] or match["superscript"] or "").translate(_PLAIN_SUPERSCRIPTS)
    return int(plain) if _INTEGER.fullmatch(plain) else None


def _read_vulgar(sign: str) -> Decimal:
    # Their numeric values are floats, in which thirds are rounded early.
    top, bottom = unicodedata.normalize("NFKC", sign).split("\u2044")
    return ROUNDED.divide(Decimal(top), Decimal(bottom))


def _split_body(body: str, decimal: DecimalMark) -> list[Decimal]:
    """Return the number that digits and separators write, or the numbers of a list such as 1,2,3."""
    if body in _VULGAR:
        return [_read_vulgar(body)]
    whole = _read_body(body, decimal)
    if whole is not None:
        return [whole]
    pieces = [(piece, _read_body(piece, decimal)) for piece in body.split(",")] if decimal != "," else [(body, None)]
    return [
        value
        for piece, read in pieces
        for value in ([read] if read is not None else map(Decimal, re.findall("[0-9]+", piece)))
    ]


def _read_body(body: str, decimal: DecimalMark) -> Decimal | None:
    """Return the number that digits and separators write; None where they write none."""
    if body.isdecimal():
        return Decimal(body)
    if body.startswith("."):
        return Decimal(f"0{body}")
    groups = re.findall("[0-9]+", body)
    marks = ["'" if mark == "\u2019" else " " if mark in _SPACES else mark for mark in re.findall("[^0-9]", body)]
    fraction = ""
    if marks[-1] in ".," and _is_decimal_mark(groups, marks, decimal):
        *groups, fraction = groups
        marks = marks[:-1]
    if marks and (len(set(marks)) > 1 or marks[0] == decimal or not _are_groups(groups, marks[0])):
        return None
    return Decimal("".join(groups) + (f".{fraction}" if fraction else ""))


def _is_decimal_mark(groups: Sequence[str], marks: Sequence[str], decimal: DecimalMark) -> bool:
    """Return whether the last separator, a point or a comma, separates decimals."""
    if decimal != "auto":
        return marks[-1] == decimal
    if len(marks) > 1:
        return marks[-1] != marks[-2]
    return marks[-1] == "." or not _are_groups(groups, ",")


def _are_groups(groups: Sequence[str], mark: str) -> bool:
    """Return whether digits are in groups of three, or between commas also as in India: 12,34,567."""
    first, *others = groups
    if not 1 <= len(first) <= 3 or first.startswith("0") or len(others[-1]) != 3:
        return False
    if all(len(group) == 3 for group in others):
        return True
    return mark == "," and len(first) <= 2 and all(len(group) == 2 for group in others[:-1])
