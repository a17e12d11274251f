"""Commands of the evaluation. The command line finds them through entry points.

A command imports only light modules at its start. Help and invalid arguments therefore answer without torch.
"""
