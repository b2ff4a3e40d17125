"""Microsoft Presidio as another finder of personal data: names, places and more, by a language model of spaCy."""

from collections.abc import Callable

from polytone.contract.errors import InputError

from .personal import Hit

LOWEST_SCORE = 0.5  # below it most hits are words that only look like names


def presidio_finder() -> Callable[[str], list[Hit]]:
    """A function that finds personal data in an English text.

    Raises:
        InputError: `presidio_missing` if the package or its language model is not installed.
    """
    try:
        from presidio_analyzer import AnalyzerEngine

        engine = AnalyzerEngine()
    except (ImportError, OSError, SystemExit) as error:
        raise InputError(
            f"--presidio needs the package presidio-analyzer and a language model of spaCy ({error}). Install them: "
            "pip install 'polytone[presidio]' && python -m spacy download en_core_web_lg",
            code="presidio_missing",
            param="presidio",
        ) from None

    def find(text: str) -> list[Hit]:
        results = engine.analyze(text=text, language="en", score_threshold=LOWEST_SCORE)
        return [Hit(result.entity_type.lower(), result.start, result.end) for result in results]

    return find
