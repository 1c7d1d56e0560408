"""Text that goes along with a question: files and long pastes, read with care and fenced for the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgemoe.text.display import count, one_line

LARGEST_BYTES = 8 << 20  # far beyond any context; a larger file is a mistake
_LOOKED_AT = 8192  # bytes that tell the kind of a file
# How picture files begin, and how WebP goes on after its length.
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0", b"RIFF")
_PICTURE_NAMES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".ico", ".webp", ".heic", ".avif")
PASTE_CHARACTERS = 4000  # a longer paste becomes an attachment: a text area draws every line of it


@dataclass(frozen=True)
class Attachment:
    """A named text."""

    name: str
    text: str

    @property
    def summary(self) -> str:
        """Name and length, for a chip."""
        lines = self.text.count("\n") + (not self.text.endswith("\n"))
        long = f"{count(lines)} lines" if lines > 1 else f"{count(len(self.text))} characters"
        return f"{one_line(self.name, 40)} · {long}"

    def fenced(self) -> str:
        """As the model reads it; the fence is longer than any in the text."""
        longest = max((len(run) for run in re.findall(r"`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        return f"{self.name}:\n{fence}\n{self.text.rstrip()}\n{fence}"


def load(name: str, largest: int = LARGEST_BYTES) -> Attachment:
    """Read a text file of at most ``largest`` bytes.

    Raises:
        ValueError: it is missing, too large, or no text; said in words.
    """
    path = Path(name).expanduser()
    try:
        if not path.is_file():
            raise ValueError(f"there is no file {name}")
        with path.open("rb") as file:
            begin = file.read(_LOOKED_AT)
        if _is_picture(path.suffix.lower(), begin):
            raise ValueError(f"{path.name} is a picture: this chat sends text only, it loads no projector for pictures")
        if path.stat().st_size > largest:
            raise ValueError(f"{path.name} is larger than {largest >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    if b"\0" in begin:
        raise ValueError(f"{path.name} is not a text file")
    return Attachment(path.name, unix_lines(data.decode("utf-8", "replace")))


def unix_lines(text: str) -> str:
    """Return ``text`` with every line end as a line feed: terminals paste carriage returns, Windows writes both."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_picture(suffix: str, begin: bytes) -> bool:
    looks_like_one = begin.startswith(_PICTURES) and (begin[:4] != b"RIFF" or begin[8:12] == b"WEBP")
    return b"\0" in begin and (looks_like_one or suffix in _PICTURE_NAMES)


def with_question(attachments: list[Attachment], question: str) -> str:
    """One message: the attachments, then the question."""
    return "\n\n".join([*(attachment.fenced() for attachment in attachments), question])
