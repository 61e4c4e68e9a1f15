"""Pictures and statistics: functions of a finished dataset that never run a model."""
