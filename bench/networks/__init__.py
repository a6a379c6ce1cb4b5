"""MiniLM and nine convolutional networks, end to end: `python -m bench.networks`."""
