"""How much every gate matters, and what is done with that at once."""
