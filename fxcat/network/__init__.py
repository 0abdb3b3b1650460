"""The parts of a network with gates: gates, costs, liveness, limits, recipes, and what stands round it."""
