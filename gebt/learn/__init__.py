"""Tasks, and the one loop that learns them."""
