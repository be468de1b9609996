"""What leaves a run: a folder with its card, a file for the official PyTorch code, a compiled program."""
