"""``make soak``: random faults for minutes, under readers, and what must hold all the time."""
