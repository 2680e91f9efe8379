"""The pure parts: what is read from the generators, medians and ratios, bars, the place in the README."""

import unittest

import loads
import report

WRK = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.86ms    1.35ms  10.52ms   83.81%
    Req/Sec    10.99k     2.37k   14.15k    60.00%
  Latency Distribution
     50%  641.00us
     75%  792.00us
     90%    0.95ms
     99%    5.68ms
  11059 requests in 1.01s, 1.55MB read
Requests/sec:  10901.46
Transfer/sec:      1.53MB
"""
H2LOAD = """finished in 1.01s, 23511.00 req/s, 4.87MB/s
requests: 23511 total, 23543 started, 23511 done, {good} succeeded, {bad} failed, 0 errored, 0 timeout
status codes: {two} 2xx, 0 3xx, 0 4xx, {five} 5xx
time for request:       83us     11.98ms      1.25ms      1.30ms    92.27%
"""
REDIS = '"test","rps","avg_latency_ms"\n"PING_MBULK","13297.87","1.201"\n'


def rows(**systems):
    return [
        {"workload": "hop", "case": "32 connections, 50 B", "unit": "us/request", "system": name, "rounds": [{"cpu": cpu} for cpu in values]}
        for name, values in systems.items()
    ]


class Loads(unittest.TestCase):
    def test_wrk_is_read_in_microseconds(self):
        self.assertEqual(loads.parse_wrk(WRK), {"requests": 11059, "rate": 10901.46, "p50_us": 641.0, "p99_us": 5680.0})

    def test_wrk_with_errors_is_no_figure(self):
        for words in ("  Non-2xx or 3xx responses: 1\n", "  Socket errors: connect 0, read 1, write 0, timeout 0\n"):
            with self.assertRaises(loads.LoadError):
                loads.parse_wrk(WRK + words)

    def test_h2load_is_read(self):
        text = H2LOAD.format(good=23511, bad=0, two=23511, five=0)
        self.assertEqual(loads.parse_h2load(text), {"requests": 23511, "rate": 23511.0, "mean_us": 1250.0})

    def test_h2load_with_errors_is_no_figure(self):
        for good, bad, two, five in ((23510, 1, 23510, 0), (23511, 0, 23501, 10)):
            with self.assertRaises(loads.LoadError):
                loads.parse_h2load(H2LOAD.format(good=good, bad=bad, two=two, five=five))

    def test_redis_benchmark_is_read(self):
        self.assertEqual(loads.parse_redis(REDIS, 500), {"requests": 500, "rate": 13297.87})
        with self.assertRaises(loads.LoadError):
            loads.parse_redis("", 500)


class Report(unittest.TestCase):
    def test_a_ratio_is_the_median_of_the_ratios_within_rounds(self):
        # The third round was slow for both. The ratio of the medians would be 2.2.
        results = report.Results(rows(weft=[20, 22, 90], haproxy=[10, 20, 10]))
        key = ("hop", "32 connections, 50 B", "weft")
        self.assertEqual(results.ratio(*key, "haproxy", "cpu"), 2.0)
        self.assertEqual(results.median(*key, "cpu"), 22)
        self.assertIsNone(results.ratio(*key, "envoy", "cpu"))

    def test_bars_are_met_not_met_or_not_measured(self):
        results = report.Results(rows(weft=[23.0, 23.0], haproxy=[20.0, 20.0], envoy=[50.0, 50.0]))
        met = [bar["met"] for bar in report.bars(results)]
        self.assertEqual(met[:3], [True, False, None])

    def test_the_worst_of_several_cases_is_judged(self):
        made = [
            {"workload": "opaque", "case": case, "unit": "ms/GiB", "system": system, "rounds": [{"cpu": cpu}]}
            for case, system, cpu in (("1 MiB up", "weft", 9), ("1 MiB up", "envoy", 10), ("1 MiB down", "weft", 11), ("1 MiB down", "envoy", 10))
        ]
        bar = next(bar for bar in report.bars(report.Results(made)) if "bulk" in bar["name"])
        self.assertEqual((bar["figure"], bar["met"]), (1.1, False))

    def test_numbers_have_three_digits(self):
        said = [report.number(value) for value in (None, 0, 0.4567, 1.2345, 61.72, 12345.6)]
        self.assertEqual(said, ["", "0", "0.46", "1.23", "61.7", "12346"])
        self.assertEqual(report.spread([3.0, 1.0, 2.0]), "2.00 (1.00 to 3.00)")

    def test_versions_are_found_in_what_programs_say(self):
        said = {"HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/": "2.6.12", "nginx version: nginx/1.22.1": "1.22.1",
                "0123456789abcdef0123456789abcdef01234567/1.40.0/Clean/RELEASE/BoringSSL": "1.40.0"}
        for text, version in said.items():
            self.assertEqual(report.short(text), version)

    def test_the_table_goes_between_the_markers_and_nowhere_else(self):
        text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
        self.assertEqual(report.put_between(text, f"{report.BEGIN}\nnew\n{report.END}"), f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n")
        with self.assertRaises(ValueError):
            report.put_between("no markers", "new")


if __name__ == "__main__":
    unittest.main()
