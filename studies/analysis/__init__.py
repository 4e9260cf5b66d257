"""What the trials of a study show: arms, intervals, verdict, page."""
