"""What a run stands on: devices, compiled programs, processes, and how they end."""
