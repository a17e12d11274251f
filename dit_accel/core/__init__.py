"""Types that all rooms share: attention calls, ops, timers, schedules and precisions."""
