"""A small network as a folder that can be published, and loaded without the program that made it."""
