"""One pure function per file, over paired clips."""
