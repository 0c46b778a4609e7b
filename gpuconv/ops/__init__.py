"""One operation per file; here are their public names."""
