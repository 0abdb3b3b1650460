"""What became of a network, as a page to look at and a file to read."""
