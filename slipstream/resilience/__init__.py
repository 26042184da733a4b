"""What is known about the health of targets, and the rules that keep one failure from becoming many."""
