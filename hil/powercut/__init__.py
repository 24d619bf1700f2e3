"""Power cuts and failing disks: the real store's operations on its files, cut off at each and failed one by one."""
