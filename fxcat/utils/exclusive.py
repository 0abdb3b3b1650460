"""What replaces functions of PyTorch for a while, captures and exports, happens one at a time."""

from __future__ import annotations

import os
import threading

ONE_AT_A_TIME = threading.RLock()
"""Held meanwhile, by one thread of a process."""

if hasattr(os, "register_at_fork"):
    # a child would have these functions replaced, and the lock held, for good
    os.register_at_fork(
        before=ONE_AT_A_TIME.acquire,
        after_in_parent=ONE_AT_A_TIME.release,
        after_in_child=ONE_AT_A_TIME.release,
    )
