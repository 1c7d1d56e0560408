"""Computes a placement and its speed from the bytes of a model and the rates of a machine. Pure arithmetic."""
