"""From scores to a 0/1 setting of all gates that meets a cost."""
