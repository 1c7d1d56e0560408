"""The files of one model's routing: read when it is opened, written while it runs and when it is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..config import OffloadConfig, home
from ..routing import history, predictor
from ..types import ModelShape

# The routing profile is written this often, so that a crash costs no more.
KEEP_EVERY_S = 60.0
# The predictor's tables are a larger file and change slowly.
KEEP_TABLES_EVERY_S = 600.0
# Tables that have seen fewer tokens are not worth a file.
LEAST_TOKENS = 200


def profile_folder(config: OffloadConfig) -> Path | None:
    """Return the folder of the routing profiles that the settings name, None for ``off``."""
    if config.profile == "off":
        return None
    return home("data") / "profiles" if config.profile == "auto" else Path(config.profile)


class Keeper:
    """Keeps the routing profile of one model, and the tables of its predictor.

    Attributes:
        identity: lower-case hexadecimal key of the model.
        profile: the routing of earlier runs, None when there is none.
    """

    def __init__(self, folder: Path | None, identity: str, shape: ModelShape, notes: list[str]) -> None:
        """Read the profile.

        Args:
            folder: holds the files of all models; None keeps nothing.
            identity: key of the model.
            shape: geometry of the model's experts; nothing is kept of a dense model.
            notes: gets a sentence for the user when a file cannot be used or written.
        """
        self._folder = folder if shape.layers else None
        self._shape, self._notes, self.identity = shape, notes, identity
        self.profile: history.Profile | None = None
        if self._folder is not None:
            self.profile = history.load(identity, self._folder, (shape.layers, shape.experts), notes)
        self._kept_at = self._tables_kept_at = time.monotonic()
        self._writer = threading.Thread(target=lambda: None)
        self._writer.start()

    def tables(self) -> predictor.Tables | None:
        """Read the predictor's tables of earlier runs, None when there are none."""
        if self._folder is None:
            return None
        shape = (self._shape.layers, self._shape.experts, self._shape.used)
        return predictor.load(self.identity, self._folder, shape, self._notes)

    @property
    def due(self) -> bool:
        """Tell whether the files are old enough to be written again."""
        return time.monotonic() - self._kept_at > KEEP_EVERY_S

    def keep_later(self, run: history.Profile, tables: Callable[[], predictor.Tables | None]) -> None:
        """Write the routing of this run in the background.

        Args:
            run: the routing since the model was opened.
            tables: gives the predictor's tables; called only when their file is old enough to be written again.
        """
        self._kept_at = now = time.monotonic()
        fresh = None
        if now - self._tables_kept_at > KEEP_TABLES_EVERY_S:
            self._tables_kept_at, fresh = now, tables()
        self._writer.join()
        work: tuple[object, ...] = (run, fresh, [])
        self._writer = threading.Thread(target=self._write, args=work, daemon=True)
        self._writer.start()

    def keep(self, run: history.Profile, tables: predictor.Tables | None) -> None:
        """Write the routing of this run and the predictor's tables; wait until they are on the disk."""
        self._writer.join()
        self._write(run, tables, self._notes)

    def _write(self, run: history.Profile, tables: predictor.Tables | None, notes: list[str]) -> None:
        if self._folder is None or not run.heat.any():
            return
        history.save(history.merge(self.profile, run), self._folder, notes)
        if tables is not None and tables.tokens >= LEAST_TOKENS:
            try:
                predictor.save(tables, self.identity, self._folder)
            except OSError as error:
                notes.append(f"The predictor's tables were not saved: {error}.")
