"""What an experiment is doing, for a person and for a program. Works with the daemon down.

`facts` is what there is to see, read from the database, from the attempts' folders and from the
devices: all of it read-only. How it is shown: `as_json`, `view` (of any width and height), `watch`
(again and again), `summary` (the end). No module but these four knows how anything looks.
"""
