"""The search, and the ticket that it draws."""
