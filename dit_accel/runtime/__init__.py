"""State and decisions of a running pipeline: the session, the routing of attention calls, the guard and the report."""
