"""Numbers about answers, and their intervals."""
