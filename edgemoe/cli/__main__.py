"""``python -m edgemoe.cli``."""

from .main import main

raise SystemExit(main())
