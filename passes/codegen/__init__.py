"""Graphs as the code of modules."""
