"""Noticing files: a hint or a scan finds one, it settles, and its version goes into the queue.

mounts   which filesystem a path is on
footing  whether it is still the one that was remembered
scan     the one directory walker, with the rules of what is taken
watch    inotify
settle   when a file is whole: pure, without clock and disk
observe  one look at one file: what it is now, and whether a program is writing it
attend   scans, hints and settling of one root, for as long as it stays
intake   one thread for each watch; outages
why      what a file is still waiting for
"""
