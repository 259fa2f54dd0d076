"""What a worker's exit status says: 0 done, 2 refused, 75 paused, 76 hung; anything else, or a signal, is a crash."""

from __future__ import annotations

EXIT_DONE, EXIT_REFUSED, EXIT_PAUSED, EXIT_HUNG = 0, 2, 75, 76
