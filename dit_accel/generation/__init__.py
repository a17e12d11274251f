"""Turn a request into files: settings, validation, loading, rendering and batches."""
