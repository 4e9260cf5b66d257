"""From images to batches: the world that ships, raw shards, encoded shards, the mixture plan and the datamodule."""
