"""From a request to files: settings, loading, rendering and validation."""
