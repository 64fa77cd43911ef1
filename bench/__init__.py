"""The benchmark harness: Conductor and its peers, interleaved in one run. See README.md."""
