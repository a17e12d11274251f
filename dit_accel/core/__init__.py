"""What passes between the rooms: attention calls, ops, timers, schedules and precisions."""
