"""Locks on open files. Such a lock ends with the process that holds it, however the process ends."""

from __future__ import annotations

import sys
import time
from typing import IO, Any

# True: this system can rename and remove an open file. Windows cannot.
RENAMES_OPEN = sys.platform != "win32"
# Windows does not report that a lock is free again, so a waiting process asks at this interval.
_ASK_AGAIN_SECONDS = 0.1

if sys.platform == "win32":
    import msvcrt

    def lock(file: IO[Any], wait: bool = True) -> None:
        """Lock an open file against every other process until the file is closed.

        Raises:
            OSError: another process holds the lock and ``wait`` is false.
        """
        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return
            except OSError:
                if not wait:
                    raise
            time.sleep(_ASK_AGAIN_SECONDS)

else:
    import fcntl

    def lock(file: IO[Any], wait: bool = True) -> None:
        """Lock an open file against every other process until the file is closed.

        Raises:
            OSError: another process holds the lock and ``wait`` is false.
        """
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
