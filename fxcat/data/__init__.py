"""What loaders yield, and losses of it."""
