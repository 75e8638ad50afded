"""A lock of the operating system on an open file: free when its holder is gone, however it went."""

import os
import sys


def take(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed.

    Args:
        descriptor: of the file; opened twice by one process, it is held by one of the two.
        wait: for whoever holds it (on Windows for 10 s at most).

    Returns:
        False when another holds it, or its file system knows no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # beyond the words: a locked byte cannot be read
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
