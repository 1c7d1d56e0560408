"""Replay recorded traces through policies and predictors."""
