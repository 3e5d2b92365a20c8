"""gebt inside of what users have already: import the module of what you use."""
