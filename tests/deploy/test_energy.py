"""Joules by the counters of Linux, where there are any."""

from gebt import measure_energy


def write(folder, **zones):
    for name, (now, most) in zones.items():
        zone = folder / name.replace("__", "-").replace("_", ":")
        zone.mkdir(exist_ok=True)
        (zone / "energy_uj").write_text(f"{now}\n")
        (zone / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_are_added_their_parts_are_not_and_counters_may_begin_anew(tmp_path):
    begin = {"intel__rapl_0": (100, 10**7), "intel__rapl_1": (10**7 - 99, 10**7)}
    write(tmp_path, **begin, intel__rapl_0_0=(5, 10**7))
    with measure_energy(tmp_path) as joules:
        end = {"intel__rapl_0": (2_000_100, 10**7), "intel__rapl_1": (999_900, 10**7)}
        write(tmp_path, **end, intel__rapl_0_0=(10**6, 10**7))
    assert joules == [3.0]


def test_without_counters_that_can_be_read_nothing_is_said(tmp_path):
    with measure_energy(tmp_path / "none") as joules:
        pass
    assert joules == []
    write(tmp_path, intel__rapl_0=(1, 2))
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("")
    with measure_energy(tmp_path) as joules:
        pass
    assert joules == []
