"""What is of use anywhere, and knows nothing of networks with gates."""
