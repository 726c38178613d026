"""What happens to a series by itself: the routing file, and the decision that it leads to. Pure but for reading it."""
