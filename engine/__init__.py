"""What a run needs to be safe, and no reader has to open: processes, checkpoints, folders, logs, flags, files."""

VERSION = "1.1.0"  # of the whole program; CHANGELOG.md and CITATION.cff say the same
