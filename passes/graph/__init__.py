"""Graphs, nested values, label arrays, copies: what knows no op."""
