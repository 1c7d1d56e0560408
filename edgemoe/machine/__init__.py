"""Measure this machine: the rates of its parts, and trial runs of a few layers of a model."""
