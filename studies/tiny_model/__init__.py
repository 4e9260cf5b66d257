"""How the tiny model that ships was made: tokenizer, random pipeline folder, autoencoder, teachers."""
