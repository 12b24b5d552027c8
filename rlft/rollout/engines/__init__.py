"""What generates: the engines, their contract, and what is below them."""
