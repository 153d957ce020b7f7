"""Pure deciders: from a snapshot to what happens next. No I/O."""
