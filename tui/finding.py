"""Words among texts. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def places(texts: Sequence[str], sought: str) -> list[int]:
    """List the indexes of ``texts`` with ``sought`` in them, else of those with all its words; case does not count."""
    phrase, low = sought.lower().strip(), [text.lower() for text in texts]
    if not phrase:
        return []
    whole = [index for index, text in enumerate(low) if phrase in text]
    return whole or [index for index, text in enumerate(low) if all(word in text for word in phrase.split())]
