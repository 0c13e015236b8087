"""Options: what there is, where it can be given, and what it is in the end."""
