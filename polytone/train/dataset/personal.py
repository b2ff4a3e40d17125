"""Personal data in texts: e-mail addresses, phone numbers, cards and bank accounts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

REGIONS = ("US", "GB")

# Every repetition is bounded (64 and 63 are the limits of RFC 5321 and RFC 1035): the time grows with the text only.
EMAIL = re.compile(r"[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,63}")
CARD = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}(?!\w)")
DIGITS = re.compile(r"\d")
FEWEST_DIGITS = 7  # of a phone number with its area
# Digits in one run are a phone number only after such a word: order numbers look the same.
CUE = re.compile(r"\b(?:phone|call|tel|telephone|mobile|cell|whatsapp|text|sms|ring|reach|fax)\b", re.IGNORECASE)
CUE_WITHIN = 40  # characters before the number
DATE = re.compile(r"(?:19|20)\d\d[./-]\d\d?[./-]\d\d?|\d\d?[./-]\d\d?[./-](?:19|20)\d\d")


@dataclass(frozen=True)
class Hit:
    """Personal data at `start` to `end` of a text; `what` is `email`, `phone`, `card`, `iban` or Presidio's name."""

    what: str
    start: int
    end: int


def find_personal(text: str, regions: Sequence[str] = REGIONS) -> list[Hit]:
    """The personal data of a text in order, without overlaps; `regions` are those of phone numbers without a prefix."""
    hits = [Hit("email", match.start(), match.end()) for match in EMAIL.finditer(text)] if "@" in text else []
    if len(DIGITS.findall(text)) >= FEWEST_DIGITS:
        hits = without_overlaps([*hits, *ibans(text), *cards(text), *phones(text, regions)])
    return hits


def without_overlaps(hits: Iterable[Hit]) -> list[Hit]:
    """Drop hits that overlap an earlier one: a bank account is not a phone number too."""
    kept: list[Hit] = []
    for hit in hits:
        if all(hit.end <= other.start or hit.start >= other.end for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda hit: hit.start)


def ibans(text: str) -> Iterator[Hit]:
    from stdnum import iban

    for match in IBAN.finditer(text):
        # Words may follow without punctuation; the number ends where its check digits fit.
        for end in range(match.end(), match.start() + 14, -1):
            if (
                text[end - 1].isalnum()
                and not text[end : end + 1].isalnum()
                and iban.is_valid(text[match.start() : end])
            ):
                yield Hit("iban", match.start(), end)
                break


def cards(text: str) -> Iterator[Hit]:
    from stdnum import luhn

    for match in CARD.finditer(text):
        if luhn.is_valid("".join(DIGITS.findall(match.group()))):
            yield Hit("card", match.start(), match.end())


def phones(text: str, regions: Sequence[str]) -> Iterator[Hit]:
    """Numbers in use by a region's plan; after a word such as "call", also numbers that a plan has room for."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    for leniency in (Leniency.VALID, Leniency.POSSIBLE) if CUE.search(text) else (Leniency.VALID,):
        for region in regions:
            for match in PhoneNumberMatcher(text, region, leniency):
                in_one_run = match.raw_string.isdigit() and not match.raw_string.startswith("00")
                needs_cue = in_one_run or leniency == Leniency.POSSIBLE
                if not looks_otherwise(match.raw_string) and (not needs_cue or follows_cue(text, match.start)):
                    yield Hit("phone", match.start, match.end)


def looks_otherwise(number: str) -> bool:
    """True for dates and for numbers with too few digits."""
    return len(DIGITS.findall(number)) < FEWEST_DIGITS or DATE.fullmatch(number) is not None


def follows_cue(text: str, start: int) -> bool:
    return CUE.search(text, max(0, start - CUE_WITHIN), start) is not None


def masked(text: str, hits: Sequence[Hit]) -> str:
    """The text with a placeholder such as [EMAIL] for every hit."""
    for hit in sorted(hits, key=lambda hit: hit.start, reverse=True):
        text = f"{text[: hit.start]}[{hit.what.upper()}]{text[hit.end :]}"
    return text


def hint(text: str, hit: Hit) -> str:
    """Both ends of a hit: enough to find it again, and no more, since the report may be passed on."""
    return f"{text[hit.start : hit.start + 2]}...{text[hit.end - 2 : hit.end]}"
