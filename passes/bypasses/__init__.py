"""Residual connections for networks that have none."""
