"""``make bench``: how fast we are, beside what people use today, measured in the same run."""
