"""Commands of the evaluation, found by the command line through entry points."""
