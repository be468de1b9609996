"""Pictures by index, and batches by step number."""
