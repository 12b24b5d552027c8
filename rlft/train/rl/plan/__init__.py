"""What a run will be, before it is started: its arithmetic, its time and memory here, and whether it has any signal."""
