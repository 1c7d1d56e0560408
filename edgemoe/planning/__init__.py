"""Bytes of a model and rates of a machine in, a placement and its speed out. Pure arithmetic."""
