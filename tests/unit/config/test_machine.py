"""A share of the memory is a share of what the service may really use."""

from __future__ import annotations

import pytest

from quaymaster.config.machine import Machine

MIB = 1 << 20


@pytest.fixture
def system(tmp_path):
    """Writes a /proc/self/cgroup and cgroup files; the machine that results."""

    def build(cgroup: str, **files: str) -> Machine:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Machine.here(str(tmp_path / "proc"), str(tmp_path / "cgroup"))

    return build


def test_version_2_the_tightest_limit_up_to_the_root_counts(system):
    machine = system(
        "0::/system.slice/quaymaster.service\n",
        **{
            "system.slice/quaymaster.service/memory.max": "max\n",
            "system.slice/quaymaster.service/memory.high": f"{200 * MIB}\n",
            "system.slice/memory.max": f"{100 * MIB}\n",
        },
    )
    assert machine.memory == 100 * MIB


def test_version_1(system):
    machine = system(
        "5:cpu,memory:/box\n0::/\n",
        **{
            "memory/box/memory.limit_in_bytes": f"{64 * MIB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert machine.memory == 64 * MIB


def test_a_container_whose_own_path_is_not_mounted(system):
    assert system("0::/../outside\n", **{"memory.max": f"{50 * MIB}\n"}).memory == 50 * MIB


def test_hybrid_hierarchy(system):
    assert system("0::/a\n", **{"unified/a/memory.max": f"{70 * MIB}"}).memory == 70 * MIB


def test_without_limits_it_is_the_host(system, tmp_path):
    host = Machine.here(str(tmp_path / "none"), str(tmp_path / "none")).memory
    assert host > 100 * MIB
    assert system("0::/\nnonsense\n", **{"memory.max": "max\n"}).memory == host


def test_this_machine():
    assert Machine.here().cpus >= 1
