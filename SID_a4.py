#!/usr/bin/env python3
"""The program lives in the package seenby now; the assignment gets a script of its own again."""

import sys

from seenby.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
