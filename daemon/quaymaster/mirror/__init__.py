"""The other direction: a bucket down to a directory, released whole (PRODUCT M).

    listing ──► plan ──► jobs ──► download, verify, expand ──► assemble ──► one rename ──► model server told
    (follow)    (plan)   (store)        (download)             (release)     (release)      (ovms, hook)

``follow.Follower`` is one mirror; it decides and keeps the order. Everything hidden is below one directory beside what
is released, on the same filesystem: see release.Ground.
"""
