"""Files, JSON lines, hashes, pictures, the console and errors: what every other part may use."""
