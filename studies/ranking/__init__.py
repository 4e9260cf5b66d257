"""Few-step students that exist, drawn from the same noise, judged and ranked on one page."""
