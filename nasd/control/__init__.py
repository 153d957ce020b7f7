"""The daemon: a turn reads the record, asks policy, and acts."""
