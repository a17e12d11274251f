"""What happens while a pipeline runs: the session, the routing of attention calls, the guard and the report."""
