"""Networks by role behind one interface, and the families of pipeline folders that they come from."""
