"""Removal: the plan, and what applies it."""
