"""Measure a model on this machine, beside llama.cpp's own placements of the model."""

from __future__ import annotations

from .measure import Test, profile

__all__ = ["Test", "profile"]
