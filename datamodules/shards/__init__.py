"""WebDataset shards: raw and encoded, written and read."""
