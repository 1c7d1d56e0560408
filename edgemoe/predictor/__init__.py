"""What routing so far says about routing to come: tables, where they come from, how good they are."""

from __future__ import annotations

from .tables import Tables, load, save

__all__ = ["Tables", "load", "save"]
