"""What each campaign is worth: ways to break the product on purpose, and the tests that must fail then.

``make mutants`` breaks a copy of the package in each of these ways in turn and runs those tests against it. That each
still fits the code is checked by every ``make test``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """``old``, which is in ``module`` once, becomes ``new``."""

    name: str
    broken: str
    """In words."""
    module: str
    """Below the package."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Arguments for pytest; their paths are below tests/."""


_KILL = "system/test_campaign_kill.py"
_DISK = "system/test_campaign_disk.py::test_a_place_that_keeps_failing"
_S3 = "contract/test_s3_faults.py"
_LEFT = "contract/test_leftovers.py"
_WEATHER = "system/test_campaign_s3.py::test_a_minute_of_bad_weather"
_POWER = "system/test_power_cut.py::test_nothing_is_lost_wherever_the_power_fails"
_LINKS = "system/test_campaign_hostile.py"
_FLOODS = "system/test_campaign_floods.py"
_OUTAGES = "system/test_outages.py"

MUTANTS = (
    # SIGKILL
    Mutant(
        "kill-forgets-running",
        "a job that ran when the process was killed is not put back",
        "store/jobs.py",
        "WHERE state = 'running'\").rowcount",
        "WHERE state = 'running' AND 0\").rowcount",
        (f"{_KILL}::test_a_copy_whose_record_was_cut_off_is_known_to_be_ours",),
    ),
    Mutant(
        "kill-unnoted-publication",
        "what is about to become visible is not noted before",
        "pipeline/publication.py",
        "left = {**job.checkpoint, PUBLISHING: self.as_checkpoint()}",
        "left = {**job.checkpoint}",
        (f"{_KILL}::test_a_copy_whose_record_was_cut_off_is_known_to_be_ours",),
    ),
    Mutant(
        "kill-forgets-aside",
        "a source that was set aside before a kill is taken for gone",
        "pipeline/dispose.py",
        "            if not (_exists(directory, name) and _same_file(directory, aside, name)):\n"
        "                return True",
        "            if True:\n                return False",
        (f"{_KILL}::test_a_source_that_was_set_aside_before_a_kill_is_disposed_of_once",),
    ),
    Mutant(
        "kill-visible-while-written",
        "a copy has its name while it is written",
        "destinations/directory_upload.py",
        "        self._file = os.open(self._part, disk.NEW_FLAGS, 0o600, dir_fd=directory)\n",
        "        self._file = os.open(self._part, disk.NEW_FLAGS, 0o600, dir_fd=directory)\n"
        "        os.link(self._part, place.leaf, src_dir_fd=directory, dst_dir_fd=directory)\n",
        ("system/test_journey_restart.py::test_sigkill_at_ten_random_instants",),
    ),
    # power cut
    Mutant(
        "power-unsynced-commits",
        "a commit does not wait for the disk",
        "store/db.py",
        'connection.execute("PRAGMA synchronous = FULL")',
        'connection.execute("PRAGMA synchronous = OFF")',
        (_POWER,),
    ),
    Mutant(
        "power-unsynced-copies",
        "a copy is recorded before its name is on the disk",
        "destinations/directory_upload.py",
        "            disk.sync_directory(self._directory)\n",
        "",
        (_POWER,),
    ),
    # real NFS
    Mutant(
        "nfs-overwrites",
        "a copy gets its name whether it is taken or not",
        "destinations/disk.py",
        "            os.link(part, leaf, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)\n"
        "        except OSError as error:\n            if error.errno not in _NO_LINKS:\n",
        '            os.rename(part, leaf, src_dir_fd=directory, dst_dir_fd=directory)\n            return "link"\n'
        "        except OSError as error:\n            if error.errno not in _NO_LINKS:\n",
        ("network/test_nfs_destination.py::test_two_hosts_that_publish_the_same_names_at_once",),
    ),
    Mutant(
        "nfs-trusts-inotify",
        "inotify is trusted on a network share",
        "intake/mounts.py",
        "        return self.filesystem.inotify and not self.blind\n",
        "        return True\n",
        ("network/test_nfs_source.py::test_what_lands_on_the_server_is_noticed_by_polling_and_arrives_once",),
    ),
    # filesystems that fail
    Mutant(
        "disk-unchecked-staging",
        "a staged copy is not compared with what was fetched",
        "pipeline/transfer.py",
        "        if source.known_sha256:\n            what =",
        "        if False:\n            what =",
        (f"{_DISK}[staging]", "system/test_campaign_disk.py::test_a_bit_that_flips_in_staging_is_noticed"),
    ),
    Mutant(
        "disk-unread-copies",
        "a copy gets its name before it was read back",
        "destinations/directory_upload.py",
        "            self._compare(digests)\n",
        "",
        (f"{_DISK}[destination]", "system/test_campaign_disk.py::test_a_bit_that_flips_at_the_destination_is_noticed"),
    ),
    Mutant(
        "disk-hidden-commits",
        "a commit that failed is taken for done",
        "store/db.py",
        "                entry.error = entry.error or error\n",
        "                entry.error = entry.error\n",
        (f"{_DISK}[state]",),
    ),
    Mutant(
        "disk-away-is-removed",
        "what is missing while its share is away is taken for removed",
        "pipeline/worker.py",
        "SourceChanged) and self._is_away(job):",
        "SourceChanged) and False:",
        (f"{_DISK}[source]", f"{_OUTAGES}::test_a_share_that_goes_away_is_an_outage_of_its_watch_and_loses_nothing"),
    ),
    Mutant(
        "disk-adopted-unsynced",
        "a copy that another program made is adopted before it is on the disk",
        "pipeline/adopt.py",
        "    shelf.destination.make_durable(stored)\n",
        "",
        ("system/test_sync.py::test_a_copy_of_another_program_counts_only_when_it_is_on_the_disk",),
    ),
    # S3
    Mutant(
        "s3-unproven",
        "what the server says it holds is not compared with what was sent",
        "destinations/s3_upload.py",
        "        if same:\n            return replace(present, evidence=evidence)",
        "        if same is not None:\n            return replace(present, evidence=evidence)",
        (f"{_S3}::test_a_server_that_holds_other_bytes_is_caught_and_the_object_withdrawn",),
    ),
    Mutant(
        "s3-lost-reply-is-failure",
        "nobody looks what became of a request whose reply was lost",
        "destinations/s3_upload.py",
        "                found = self._after_lost_reply(expected)\n",
        "                found = None\n",
        (f"{_S3}::test_replies_that_are_lost_every_time_do_not_hide_the_success", _WEATHER),
    ),
    Mutant(
        "s3-impatient",
        "Retry-After is not kept",
        "destinations/s3_tries.py",
        "        asked = min(error.retry_after, _LONGEST_PATIENCE) if isinstance(error, Busy) else 0.0\n",
        "        asked = 0.0\n",
        (f"{_S3}::test_a_busy_server_is_given_the_time_it_asks_for",),
    ),
    Mutant(
        "s3-any-part-will-do",
        "a part that has arrived is not compared with what would be sent",
        "destinations/s3_objects.py",
        "        return self.size == sums.size and (\n",
        "        return self.size == sums.size or (\n",
        ("contract/test_resume.py::test_a_part_that_differs_is_sent_again",),
    ),
    Mutant(
        "s3-denied-forgotten",
        "an upload that the server denied for a moment is forgotten",
        "pipeline/transfer.py",
        "                put = replace(put, resume=token)\n",
        "                put, leg.token = replace(put, resume=token), token\n",
        (
            "system/test_faults_s3.py::test_an_upload_that_the_server_denied_for_a_moment_is_removed_after_its_job_went_without_it",
        ),
    ),
    Mutant(
        "s3-late-creation",
        "an upload that a stalled server makes after its sender's death is looked for once only",
        "destinations/s3.py",
        "        return found or abs(self._now() - asked_at) > _LATE\n",
        "        return True\n",
        (f"{_LEFT}::test_an_upload_that_the_server_makes_after_it_was_looked_for_is_found_by_a_later_look",),
    ),
    Mutant(
        "s3-gone-for-good",
        "an object that was once said to be gone is taken for a stranger's when it is there again",
        "destinations/s3_upload.py",
        "                elif present is not None and not self._is_older(present):\n",
        "                elif present is not None and not (old and present.etag == old.etag):\n",
        (f"{_S3}::test_a_bucket_that_is_away_for_a_moment_does_not_make_our_own_object_a_strangers",),
    ),
    Mutant(
        "s3-forgets-what-failed",
        "a job that fails for its bytes forgets what it may have published",
        "pipeline/transfer.py",
        "if recipe.known and any(isinstance(leg.error, IntegrityError) for leg in self._legs):\n",
        "if any(isinstance(leg.error, IntegrityError) for leg in self._legs):\n"
        "                    self._checkpoint({})\n"
        "                if False:\n",
        ("system/test_faults_s3.py::test_an_object_that_outlived_its_withdrawal_is_ours_to_replace",),
    ),
    # shares that go away
    Mutant(
        "outage-any-filesystem",
        "another filesystem in the place of the share is taken for it",
        "intake/footing.py",
        "        if self._known is None or self._known.mark.is_same(mark):\n            return",
        "        if True:\n            return",
        (f"{_OUTAGES}::test_a_share_that_goes_away_is_an_outage_of_its_watch_and_loses_nothing",),
    ),
    Mutant(
        "outage-untold",
        "a destination that hangs before its first file is not told of",
        "pipeline/transfer.py",
        "            self.emit(publication.told_failure(self.job, name, error))\n            raise\n",
        "            raise\n",
        (f"{_OUTAGES}::test_a_destination_that_hangs_from_the_start_says_why_its_files_wait",),
    ),
    # the database
    Mutant(
        "state-silent-beginning",
        "a database that is gone is made anew in silence",
        "store/__init__.py",
        "if create and not accept_loss and noted and not os.path.exists(self.path):",
        "if False:",
        (
            "system/test_rebuild.py"
            "::test_a_deleted_database_is_never_begun_anew_in_silence_and_rebuild_sends_nothing_again",
        ),
    ),
    Mutant(
        "state-begun-twice",
        "a rebuild that was killed leaves what it had set aside behind",
        "store/salvage.py",
        "    for folder in unfinished(directory):\n",
        "    for folder in unfinished(directory)[:0]:\n",
        ("system/test_rebuild.py::test_a_rebuild_that_was_killed_goes_on_with_what_it_had_set_aside",),
    ),
    Mutant(
        "state-closed-beneath-others",
        "the database is closed beneath a thread that is in it",
        "store/db.py",
        "            if lock.acquire(timeout=max(0.0, end - time.monotonic())):\n",
        "            if lock.acquire(blocking=False) or True:\n",
        ("unit/store/test_database.py::test_a_connection_is_not_closed_beneath_a_thread_that_uses_it",),
    ),
    Mutant(
        "custody-unchained",
        "the custody log is not compared with its digests",
        "store/custody.py",
        "if entry.seq != expected or entry.sha256 != link(previous, entry.body) or",
        "if entry.seq != expected or",
        ("unit/store", "unit/cli/test_audit.py", "-k", "custody or chain or audit"),
    ),
    # hostile input
    Mutant(
        "hostile-follows-links",
        "links below a watch are followed",
        "source.py",
        "_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS",
        "_RESOLVE = 0",
        (f"{_LINKS}::test_swapped_links_never_lead_to_a_secret",),
    ),
    Mutant(
        "hostile-endless-frames",
        "what expands to more than was recorded is not an error",
        "pipeline/formats.py",
        "raise _damaged(f\"they come to {'more than' if done > size else f'{done} instead of'} {size} bytes\")",
        "pass",
        (
            f"{_LINKS}::test_a_frame_without_end_is_cut_off_at_the_recorded_size",
            f"{_LINKS}::test_a_mutated_frame_is_its_content_or_an_integrity_error",
        ),
    ),
    # floods
    Mutant(
        "flood-unheard-overflow",
        "events that the kernel dropped are not made up for by a scan",
        "intake/watch.py",
        "            drained.overflow = True\n",
        "            pass\n",
        (f"{_FLOODS}::test_an_overflow_of_events_loses_no_file",),
    ),
    Mutant(
        "flood-silent-limit",
        "directories beyond the limit of watches are passed over",
        "intake/watch.py",
        "                raise _limit(code, self.directories)\n",
        "                return True\n",
        (f"{_FLOODS}::test_directories_beyond_the_limit_of_watches_are_polled",),
    ),
    # a clock that jumps
    Mutant(
        "clock-believed",
        "the age of a file is believed after the clock was set",
        "intake/attend.py",
        "            self._jumped = True\n",
        "            pass\n",
        (f"{_FLOODS}::test_a_clock_that_is_set_by_days_neither_ships_early_nor_stalls",),
    ),
    Mutant(
        "clock-awaited",
        "jobs wait for a time that the clock has come from",
        "store/__init__.py",
        "        if ahead < self._ahead - _SET_BACK:\n",
        "        if False:\n",
        (f"{_FLOODS}::test_a_clock_that_is_set_by_days_does_not_put_off_the_next_try",),
    ),
)
