"""The engine in a child process: what crashes, aborts or is killed there leaves the program that asked alive.

``Worker`` opens it; what it gives has the surface of :class:`edgemoe.Llama` that a chat needs.
"""

from __future__ import annotations

from .parent import EngineDied, RemoteEngine, Worker, open_llama

__all__ = ["EngineDied", "RemoteEngine", "Worker", "open_llama"]
