"""Routing of tokens to experts: traces, profiles, prediction, and the choice of experts for slots."""
