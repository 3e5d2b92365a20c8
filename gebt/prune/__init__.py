"""What is pruned: scores and masks of links and weights, and when they settle."""
