"""Other people's trackers get what TensorBoard shows: each a process of its own, beside the daemon.

What they are told is read from TensorBoard's files, so nothing in a search knows of them. A run is
told whole each time, and told again where a kill came in between: a sink takes it so that nothing
stands there twice.
"""
