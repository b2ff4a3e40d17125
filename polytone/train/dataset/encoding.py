"""Text written in one encoding and read in another ("donâ€™t"): detected and repaired by ftfy (Speer 2019)."""

LOST = "\N{REPLACEMENT CHARACTER}"


def repaired(text: str) -> str:
    """The text without such damage; intended quotes, dashes and accents stay as they are."""
    import ftfy

    return text if text.isascii() else ftfy.fix_encoding(text)


def damage(text: str) -> str | None:
    """A description of the damage in a text; None if there is none."""
    if text.isascii():
        return None
    better = repaired(text)
    if better != text:
        position = next(i for i, (a, b) in enumerate(zip(text, better + " ", strict=False)) if a != b)
        return f"{text[position : position + 12]!r} should be {better[position : position + 10]!r}"
    if LOST in text:
        position = text.index(LOST)
        return f"a character is lost in {text[max(0, position - 10) : position + 10]!r}; write it again"
    return None
