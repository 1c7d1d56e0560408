"""Routing of tokens to experts: traces, profiles, prediction, and who deserves a slot."""
