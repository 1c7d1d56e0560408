"""Measures a model on this machine, beside llama.cpp's own way of running it."""

from __future__ import annotations

from .measure import Test, profile

__all__ = ["Test", "profile"]
