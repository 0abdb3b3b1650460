"""A model as one graph: tracing, modes, regions, state that forward keeps."""
