"""What operators look at and ask for, and what the service says of itself for them (PRODUCT Q5, O1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quaymaster.model import Job, State
from quaymaster.store import control, jobs
from quaymaster.store.control import Control
from quaymaster.store.jobs import Filter, Held
from quaymaster.store.room import Room

_STEERED_AT_ONCE = 500
"""Jobs that an operator's word changes in one commit."""


class Operators(Room):
    def jobs(self, which: Filter) -> list[Job]:
        with self._db.read() as t:
            return jobs.find(t, which)

    def counts(self) -> dict[str, dict[State, tuple[int, int]]]:
        """For each watch and state: how many jobs, and the bytes of their sources."""
        with self._db.read() as t:
            return jobs.count(t)

    def open_jobs(self) -> dict[State, int]:
        """How many jobs are in each state that is not final; quick, whatever the number of jobs that are done."""
        with self._db.read() as t:
            return jobs.count_open(t)

    def states_below(self, watch: str, path: bytes) -> dict[State, int]:
        """How many files' jobs below a directory of a watch (b"": all of it) are in each state."""
        with self._db.read() as t:
            if path:
                return jobs.count_below(t, watch, path)
            return {state: number for state, (number, _) in jobs.count(t).get(watch, {}).items()}

    def oldest_open(self) -> float | None:
        with self._db.read() as t:
            return jobs.oldest_open(t)

    def held(self) -> list[Held]:
        """What waits or is parked, by its error, the most frequent first."""
        with self._db.read() as t:
            return jobs.held(t)

    def first_queued(self) -> dict[str, float]:
        """For each watch that has queued jobs: when the one that stands first was queued."""
        with self._db.read() as t:
            return jobs.first_queued(t)

    def control(self) -> Control:
        """What operators have asked for."""
        with self._db.read() as t:
            return control.read(t)

    def pause(self, watches: Sequence[str], by: str) -> list[str]:
        """Begin no job of these watches any more, until :meth:`resume`; those that were not paused before."""
        return self._db.write(lambda t: control.pause(t, watches, by, self._clock()))

    def resume(self, watches: Sequence[str], by: str) -> list[str]:
        """The opposite; those that were paused."""
        return self._db.write(lambda t: control.resume(t, watches, by, self._clock()))

    def rescan(self, watches: Sequence[str], by: str) -> None:
        """Ask the running service to scan these watches now."""
        self._db.write(lambda t: control.rescan(t, watches, by, self._clock()))

    def retry(self, which: Filter, by: str = "operator") -> list[int]:
        """Run waiting, parked or dropped jobs now; their numbers."""

        def act(t: Any, chosen: Sequence[Job], some: Filter) -> list[int]:
            ids = jobs.retry(t, some)
            for job in chosen:
                if job.id in ids:
                    self._note(t, "retried", job, {"by": by})
            return ids

        return self._some_at_a_time(which, act)

    def drop(self, which: Filter, by: str = "operator") -> list[int]:
        """Give queued, waiting or parked jobs up; their numbers. Sources stay where they are."""

        def act(t: Any, chosen: Sequence[Job], some: Filter) -> list[int]:
            ids = jobs.drop(t, some, self._clock())
            for job in chosen:
                if job.id in ids:
                    self._note(t, "dropped", job, {"by": by, "code": job.error_code})
            return ids

        return self._some_at_a_time(which, act)

    def _some_at_a_time(self, which: Filter, act: Callable[[Any, Sequence[Job], Filter], list[int]]) -> list[int]:
        """``act`` on the jobs that are chosen now, in commits of some of them each: however many they are, a service
        that runs is never kept from its queue for long."""
        with self._db.read() as t:
            numbers = [job.id for job in jobs.find(t, which)]
        done: list[int] = []
        for start in range(0, len(numbers), _STEERED_AT_ONCE):
            some = replace(which, ids=tuple(numbers[start : start + _STEERED_AT_ONCE]))
            done += self._db.write(lambda t, some=some: act(t, jobs.find(t, some), some))  # type: ignore[misc]
        return done

    def is_open(self, job: int) -> bool:
        """Whether the job of that number exists and is not final."""
        found = self.jobs(Filter(ids=(job,)))
        return bool(found) and not found[0].state.final

    # -- what the service says of itself --

    def report(self, name: str, body: Mapping[str, Any]) -> None:
        """Leave a word for commands in other processes (a watch's state, progress)."""
        self.report_all({name: body})

    def report_all(self, said: Mapping[str, Mapping[str, Any]]) -> None:
        """The same of several, in one commit."""
        rows = [(name, json.dumps(body), self._clock()) for name, body in said.items()]
        self._db.write(lambda t: t.executemany("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", rows))

    def reports(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """name -> (when, what was said)."""
        with self._db.read() as t:
            return {r["name"]: (r["at"], json.loads(r["body"])) for r in t.execute("SELECT * FROM reports")}
