"""What holds for all tests."""

import signal

# A shell that starts the tests in the background has SIGINT ignored, and what they start would inherit that: Ctrl-C
# could not be tried.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
