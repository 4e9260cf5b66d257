"""`python -m workbench.bench`: this engine against the plain arrangement of the same algorithm, on this machine."""
