"""What is wrong with a machine, a cache, a group of servers or a mount, and the exact fix."""
