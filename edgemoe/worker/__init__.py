"""Run the engine in a child process, so that a crash, an abort or a kill of the engine does not end the program.

``Worker`` opens the engine. The opened engine has the methods of :class:`edgemoe.Llama` that a chat needs.
"""

from __future__ import annotations

from .parent import EngineDied, RemoteEngine, Worker, open_llama, open_service

__all__ = ["EngineDied", "RemoteEngine", "Worker", "open_llama", "open_service"]
