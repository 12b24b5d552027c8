"""What can go wrong, what rlft does then, and the tests that make it happen."""
