"""The engine: the only room that touches the native binding and llama_cpp.

``Llama`` is ``llama_cpp.Llama`` with every routed expert placed on its own; ``devices`` lists the devices that can hold
hot experts.
"""

from __future__ import annotations

from ..errors import Cancelled
from .experts import Experts
from .host import devices
from .llama import Llama

__all__ = ["Cancelled", "Experts", "Llama", "devices"]
