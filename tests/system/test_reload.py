"""S3: SIGHUP applies a new configuration without dropping a job, and keeps the old one when the new one is wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from quaymaster.model import State
from system.conftest import Home, quoted
from system.service import Service, until


def rewrite(service: Service, config: str) -> None:
    service.config_file.write_text(config)
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)


def test_a_new_watch_is_served_and_the_process_stays(home: Home, serve: Callable[..., Service]) -> None:
    service = serve(home.config())
    pid = service.pid
    home.land("before", b"1")
    service.until_done(1)
    second = home.folder / "second"
    second.mkdir()
    more = f'\n[watch.second]\npath = {quoted(second)}\nsettle = "0.4s"\ndestinations = ["archive"]\n'
    rewrite(service, home.config() + more)
    until(lambda: service.lines("the configuration was read again; watches 2 directories"))
    (second / "after").write_bytes(b"2")
    home.land("also after", b"3")
    service.until_done(3)
    assert home.arrived() == {b"before": b"1", b"second/after": b"2", b"also after": b"3"}
    assert service.pid == pid
    service.stop()


def test_a_wrong_configuration_is_refused_with_its_line_and_the_old_one_goes_on(
    home: Home, serve: Callable[..., Service]
) -> None:
    service = serve(home.config())
    rewrite(service, home.config().replace("settle =", "setle ="))
    until(lambda: service.lines("quaymaster.toml:", "setle", "settle"))
    until(lambda: service.lines("the earlier one stays in effect"))
    home.land("file", b"1")
    service.until_done(1)
    rewrite(service, home.config().replace("/state", "/elsewhere"))
    until(lambda: service.lines("state_dir: cannot change while the service runs; restart it"))
    service.stop()


def test_what_runs_goes_on_as_it_began_and_is_delivered_once(home: Home, serve: Callable[..., Service]) -> None:
    watch = 'compress = { format = "zstd", level = 19, min_size = "1MiB" }'
    service = serve(home.config(watch))
    content = os.urandom(1 << 19).hex().encode() * 24
    home.land("large", content)
    until(lambda: service.states()[State.RUNNING])
    rewrite(service, home.config())
    until(lambda: service.lines("the configuration was read again"))
    assert service.states()[State.RUNNING] == 1, "the test wants a job that is still running after the reload"
    home.land("small", b"1")
    service.until_done(2)
    assert sorted(home.arrived()) == [b"large.zst", b"small"], "compressed, as it was configured when it began"
    assert len(service.deliveries("large")) == 1
    service.stop()
    assert home.leftovers() == []
