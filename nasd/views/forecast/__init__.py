"""Wall-clock, GPU-hours and slot use to be expected of a config, from simulating its search.

premises (what it rests on, with `data` and `rates`) -> search (in virtual time, in a temporary
folder) -> figures (of one search) -> as_json (the forecast, of several) -> view (for a terminal).
An experiment in the config's own state folder is only read, for what it has measured so far.
"""
