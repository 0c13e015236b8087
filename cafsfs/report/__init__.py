"""What a mount tells of itself: its state, its numbers, its log. No read waits for any of it."""
