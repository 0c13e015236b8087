"""Mount a CAFS blob store as a directory."""
