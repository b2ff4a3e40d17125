"""Text that was written in one encoding and read in another ("donâ€™t"), found and mended by ftfy (Speer 2019)."""

LOST = "\N{REPLACEMENT CHARACTER}"


def mended(text: str) -> str:
    """The text with its damage undone; quotes, dashes and the like that were meant stay as they are."""
    import ftfy

    return text if text.isascii() else ftfy.fix_encoding(text)


def damage(text: str) -> str | None:
    """What is damaged in a text, in words."""
    if text.isascii():
        return None
    better = mended(text)
    if better != text:
        position = next(i for i, (a, b) in enumerate(zip(text, better + " ", strict=False)) if a != b)
        return f"{text[position : position + 12]!r} should be {better[position : position + 10]!r}"
    if LOST in text:
        position = text.index(LOST)
        return f"a letter is lost at {text[max(0, position - 10) : position + 10]!r}; write it anew"
    return None
