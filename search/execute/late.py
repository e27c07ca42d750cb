"""End the workers that ignore the search's time. Usually, workers end in time by themselves (`Job.seconds`)."""

from __future__ import annotations

from search.driver import Driver

GRACE = 2.0  # seconds after the search's end in which a worker may still send its last report


def seconds_to_wait(driver: Driver) -> float | None:
    """Return the seconds until running trials are late, 0 if they are late now; None without a time limit."""
    return None if driver.seconds_left is None else max(0.0, driver.seconds_left + GRACE)


def is_late(driver: Driver) -> bool:
    """Return whether trials that still run are late. The executor must then end their workers."""
    return seconds_to_wait(driver) == 0


def release_late(driver: Driver) -> None:
    """Release the trials of ended workers, so that a resume continues them."""
    for number in list(driver.running):
        driver.release(number, "the time was up")
