"""Results on their way to a destination, and the proof that they are there."""
