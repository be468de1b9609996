"""Using a trained model: drawing pictures, upscaling files, generating new ones."""
