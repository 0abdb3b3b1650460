"""From a graph to labels, units, sections and costs."""
