"""What a run needs to be safe, and no reader has to open: processes, checkpoints, folders, logs, flags, files."""
