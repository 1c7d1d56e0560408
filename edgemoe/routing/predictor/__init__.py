"""Prediction of routing from the routing so far: tables, their training, their quality."""

from __future__ import annotations

from .tables import HORIZON, RATE, Tables, load, save, untrained

__all__ = ["HORIZON", "RATE", "Tables", "load", "save", "untrained"]
