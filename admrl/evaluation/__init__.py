"""What a gap is, and how every method is judged by it."""
