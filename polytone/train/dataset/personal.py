"""Personal data in texts: e-mail addresses, phone numbers, cards and bank accounts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

REGIONS = ("US", "GB")

EMAIL = re.compile(r"[\w.+%'-]+@(?:[\w-]+\.)+[^\W\d_]{2,}")
CARD = re.compile(r"(?<![\w.-])[2-6](?:[ -]?\d){12,18}(?![\w-])")
IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}(?!\w)")
PHONE = re.compile(r"(?<![\w.+-])(?:\+|\(|00)?\d(?:[ ().\-/]{0,3}\d){6,14}(?!\w|[.\-/]\d)")
DIGITS = re.compile(r"\d")
# Digits in one run are a phone number only where the text says so: order numbers look alike.
CUE = re.compile(r"\b(?:phone|call|tel|telephone|mobile|cell|whatsapp|text|sms|ring|reach|fax)\b", re.IGNORECASE)
CUE_WITHIN = 40  # characters before the number
GROUPED = re.compile(r"(?:\+?1[ .\-]?)?(?:\(\d{3}\) ?|\d{3}[ .\-/])\d{3}[ .\-]\d{4}")
DATE = re.compile(r"(?:19|20)\d\d[./-]\d\d?[./-]\d\d?|\d\d?[./-]\d\d?[./-](?:19|20)\d\d")


@dataclass(frozen=True)
class Hit:
    """Personal data at `start` to `end` of a text; `what` is `email`, `phone`, `card`, `iban` or Presidio's name."""

    what: str
    start: int
    end: int


def find_personal(text: str, regions: Sequence[str] = REGIONS) -> list[Hit]:
    """The personal data of a text in its order, none overlapping; `regions` are those of numbers without a prefix."""
    hits = [Hit("email", match.start(), match.end()) for match in EMAIL.finditer(text)] if "@" in text else []
    if DIGITS.search(text) and len(DIGITS.findall(text)) >= 7:
        hits = apart([*hits, *ibans(text), *cards(text), *phones(text, regions)])
    return hits


def apart(hits: Iterable[Hit]) -> list[Hit]:
    """Hits that overlap an earlier named one are dropped: what is an account is not a phone number too."""
    kept: list[Hit] = []
    for hit in hits:
        if all(hit.end <= other.start or hit.start >= other.end for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda hit: hit.start)


def ibans(text: str) -> Iterator[Hit]:
    from stdnum import iban

    for match in IBAN.finditer(text):
        # Words may follow without a mark; the number ends where its check digits fit.
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
    for match in PHONE.finditer(text):
        written = match.group()
        if not DATE.fullmatch(written) and is_phone(
            written, text[max(0, match.start() - CUE_WITHIN) : match.start()], regions
        ):
            yield Hit("phone", match.start(), match.end())


def is_phone(written: str, before: str, regions: Sequence[str]) -> bool:
    """Whether digits are a phone number: by their grouping, or by a plan of `regions` and by how they are written.

    After a word such as "call", a number that a plan has room for is enough; it need not be in use.
    """
    if GROUPED.fullmatch(written):
        return True
    told = CUE.search(before) is not None
    if written.isdigit() and not written.startswith("00") and not told:
        return False
    if written.startswith("00"):
        written = f"+{written[2:]}"
    return any(fits(written, region, exactly=not (told or written.startswith("+"))) for region in regions)


def fits(written: str, region: str, exactly: bool) -> bool:
    import phonenumbers

    try:
        number = phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return False
    return bool(phonenumbers.is_valid_number(number) if exactly else phonenumbers.is_possible_number(number))


def masked(text: str, hits: Sequence[Hit]) -> str:
    """The text with a placeholder such as [EMAIL] for every hit."""
    for hit in sorted(hits, key=lambda hit: hit.start, reverse=True):
        text = f"{text[: hit.start]}[{hit.what.upper()}]{text[hit.end :]}"
    return text


def hint(text: str, hit: Hit) -> str:
    """Enough of a hit to find it again, and not more: the report may be passed on."""
    return f"{text[hit.start : hit.start + 2]}...{text[hit.end - 2 : hit.end]}"
