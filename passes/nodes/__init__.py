"""What nodes do: their effects, their values for one example, what is left over after a rewrite."""
