"""What people look at: functions of a finished dataset that never run a model."""
