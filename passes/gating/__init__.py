"""Where gates go, and the graph with gates."""
