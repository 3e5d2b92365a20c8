"""What a ticket is for: the compact model, and what it costs."""
