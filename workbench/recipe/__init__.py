"""What a run is asked to do: dataclasses with the only defaults, checks, reading, lambda tables."""
