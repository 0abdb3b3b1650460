"""Training the gates beside somebody's own loop: worth, price, phases, optimizers that follow."""
