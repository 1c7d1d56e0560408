"""Policies and predictors over recorded traces."""
