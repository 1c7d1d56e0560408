"""One command that tells what EdgeMoE is worth on a GPU: ``python -m bench.gpu --help``."""
