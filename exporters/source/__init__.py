"""`export_source`: a network as one Python file of plain PyTorch layers, and its weights beside it."""
