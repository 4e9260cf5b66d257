"""Judges that score an answer: the local network and vision-language models."""
