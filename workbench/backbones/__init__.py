"""Networks by role behind one seam."""
