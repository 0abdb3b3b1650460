"""The provided loop: epochs, weights, teacher, checkpoints, records."""
