"""Images with labels or names, whatever they are stored in."""
