"""Measure EdgeMoE on a GPU with one command: ``python -m bench.gpu --help``."""
