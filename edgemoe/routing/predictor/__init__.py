"""What routing so far says about routing to come: tables, where they come from, how good they are."""

from __future__ import annotations

from .tables import HORIZON, RATE, Tables, load, save, untrained

__all__ = ["HORIZON", "RATE", "Tables", "load", "save", "untrained"]
