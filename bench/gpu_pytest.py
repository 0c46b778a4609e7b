"""A pytest plugin, ``-p gpu_pytest --into FILE``: keeps what happened for the GPU day.

The file is whole at each moment, so what a crash or a hang cuts short is not lost. A test that
lacks one of the packages in gpu_packages is skipped.
"""

import pathlib
import time

import gpu_packages
import pytest
from gpu_findings import Findings, compiling

gpu_packages.do_without()
gpu_packages.skip_hypothesis()
ABSENT = gpu_packages.absent()


def pytest_addoption(parser):
    parser.addoption("--into", type=pathlib.Path)
    parser.addoption("--stand-in", action="store_true")


def pytest_configure(config):
    if config.getoption("--stand-in"):
        import gpu_stand_in
        gpu_stand_in.install()
    findings = Findings(config.getoption("--into"))
    config.pluginmanager.register(Keeper(findings))
    config.compiling = compiling(findings)
    config.compiling.__enter__()


def pytest_unconfigure(config):
    if hasattr(config, "compiling"):
        config.compiling.__exit__(None, None, None)


def pytest_collection_finish(session):
    if session.config.getoption("--stand-in"):
        import gpu_stand_in
        modules = {item.module for item in session.items if hasattr(item, "module")}
        gpu_stand_in.shrink(benches=[module for module in modules
                                     if module.__name__.startswith("bench_")])


class Keeper:
    def __init__(self, findings):
        self.findings, self.saved, self.uncollected = findings, 0.0, set()
        self.counts = findings.data["counts"]
        self.counts.update(passed=0, failed=0, skipped=0)
        findings.save()

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        report = yield
        return self.without_packages(report, report.failed and collector.path)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        return self.without_packages(report, call.excinfo and item.path)

    @staticmethod
    def without_packages(report, path):
        said = str(report.longrepr) if path else ""
        name = next((name for name in ABSENT if f"No module named '{name}" in said
                     or f"pip install {name}" in said), None)
        if name:
            report.outcome, report.longrepr = "skipped", (str(path), 0, f"Skipped: no {name}")
        return report

    def pytest_collectreport(self, report):
        if report.failed and report.nodeid not in self.uncollected:  # as tests, as doctests
            self.uncollected.add(report.nodeid)
            self.fail(report, "collecting ")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.fail(report, "" if report.when == "call" else f"{report.when} of ")
        elif report.skipped or report.when == "call":
            self.counts[report.outcome] += 1
        if time.monotonic() - self.saved > 1:
            self.findings.save()
            self.saved = time.monotonic()

    def fail(self, report, when):
        self.counts["failed"] += 1
        crash = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash else str(report.longrepr)
        lines = [line for line in said.splitlines() if line.strip()] or ["no message"]
        self.findings.failure(when + report.nodeid, lines[0] if crash else lines[-1])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        benchmarks = getattr(getattr(session.config, "_benchmarksession", None), "benchmarks", [])
        self.findings.data["measurements"] = [
            dict(b.extra_info) for b in benchmarks if "ms" in b.extra_info]
        self.findings.save()
        if exitstatus in (0, 1, 5):  # well, failures, nothing to do; else it was cut short
            self.findings.end()
