"""What trained models are worth: measures, tables and plots."""
