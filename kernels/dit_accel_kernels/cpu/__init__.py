"""Run ops on a CPU where plain torch is not the fastest way."""
