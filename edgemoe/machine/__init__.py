"""Rates of this machine: measured, kept, and tried with a few layers of a model."""
