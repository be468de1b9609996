"""Using a trained model: drawing pictures, restoring files, generating new ones."""
