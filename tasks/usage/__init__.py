"""What a run will take, told before it is begun, and what it has taken, set beside that."""
